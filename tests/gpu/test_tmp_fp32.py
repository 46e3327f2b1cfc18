from tests.conftest import TINY, World
def test_it(world: World) -> None:
    run = [*[f for f in TINY if not f.startswith(("--precision", "--no-compile"))], "--precision=fp32", "--no-compile", "--num_iterations=20"]
    out = {}
    for tag, more, env in (("cpu", (), {"CUDA_VISIBLE_DEVICES": ""}), ("gpu", (), {}), ("gpu2", (), {}), ("gpumath", ("--recipe=attention=math",), {})):
        r = world.run("scripts.base_train", *run, *more, f"--model_tag={tag}", **env)
        assert r.returncode == 0, r.stderr
        out[tag] = world.losses(tag)
    for s in (1, 2, 3, 4, 5, 6, 8, 10, 15, 20):
        print("LOSS", s, *(f"{t} {o[s]:.6f}" for t, o in out.items()))
    assert False
