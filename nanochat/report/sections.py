"""The sections of a report, each from what the stages have left."""

import statistics
from typing import Any

from nanochat.common.markdown import block, duration, number, table
from nanochat.plan.hardware import GPUS, cpu
from nanochat.plan.profile import profile_of
from nanochat.plan.recipe import Recipe
from nanochat.report.run_files import StageFiles

NOT_TASKS = {"step", "elapsed_s", "val_bpb", "val_loss", "core", "alert", "back_to", "bad_steps", "bad_samples"}
LATE = 0.5  # the steps of a run's second half are the ones that speeds are taken from: compiling is over


def price_per_hour(stage: StageFiles) -> float | None:
    """US dollars an hour of all of the stage's GPUs; None on a CPU, and for a kind without a price."""
    if not stage.plan.get("on_gpu"):
        return None
    question = stage.plan["question"]
    asked = stage.settings.get("usd_per_gpu_hour", -1)
    prices = {gpu.name: gpu.usd_per_hour for gpu in GPUS}
    price = asked if asked >= 0 else prices.get(question["gpu"])
    return None if price is None else price * question["world_size"]


def usd(stage: StageFiles) -> float | None:
    """US dollars that the stage has cost."""
    price, elapsed_s = price_per_hour(stage), stage.last("elapsed_s")
    return None if price is None or elapsed_s is None else price * elapsed_s / 3600


def _late(stage: StageFiles, key: str) -> float | None:
    values = [value for _, value in stage.series(key)]
    return statistics.median(values[int(len(values) * LATE) :]) if values else None


def _peak(stage: StageFiles) -> float | None:
    return max((value for _, value in stage.series("mem_gib")), default=None)


def _validation(stage: StageFiles) -> str:
    for key, unit in (("val_bpb", "bits per byte"), ("val_loss", "nats")):
        if (found := stage.last(key)) is not None:
            return f"{found:.4f} {unit}"
    return "–"


def _money(value: float | None) -> str:
    return "–" if value is None else f"${value:,.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _state(stage: StageFiles) -> str:
    if stage.is_done:
        return "done"
    return f"stopped after step {stage.steps[-1]['step']:,}" if stage.steps else "began" if stage.began else "not begun"


def summary(stages: list[StageFiles]) -> str:
    """One line a stage, and the whole."""
    rows = [
        [
            stage.name,
            _state(stage),
            duration(stage.last("elapsed_s")),
            _money(usd(stage)),
            number(stage.last("tokens"), ",.0f"),
            number(stage.last("loss")),
            _validation(stage),
            _percent(_late(stage, "mfu")),
            number(_peak(stage), ",.1f"),
            number(stage.core.get("core"), ".4f"),
            number(stage.chat.get("chatcore"), ".4f"),
        ]
        for stage in stages
    ]
    times = [seconds for stage in stages if (seconds := stage.last("elapsed_s")) is not None]
    costs = [cost for stage in stages if (cost := usd(stage)) is not None]
    rows.append(["all", "", duration(sum(times)) if times else "–", _money(sum(costs) if costs else None), *[""] * 7])
    header = ["stage", "state", "time", "cost", "tokens", "last loss", "validation", "MFU", "peak GiB", "CORE", "ChatCORE"]
    return table(header, rows)


def missing(stages: list[StageFiles]) -> str:
    """What a whole run would have and this one has not, and what was skipped with its reason; empty where nothing is."""
    lines = []
    for stage in stages:
        if stage.name == "dpo" and not stage.began:
            continue
        if not stage.is_done:
            lines.append(f"the stage {stage.name} is not finished: {_state(stage)}")
        elif stage.name == "base":
            lines += [
                f"the base model was not asked: {what}"
                for what, there in (("CORE", stage.core), ("bits per byte", stage.base_loss))
                if not there
            ]
        elif not stage.chat:
            lines.append(f"the {stage.name} model was not evaluated (chat_eval)")
        lines += [f"{stage.name} learned without {name}: {why}" for name, why in _items(stage.mixture.get("skipped"))]
        lines += [f"{stage.name} was not asked {name}: {why}" for name, why in _items(stage.chat.get("skipped"))]
        lines += stage.remarks
    return "\n".join(f"- {line}" for line in lines)


def _items(value: Any) -> list[tuple[str, str]]:
    return [(str(name), str(why)) for name, why in value.items()] if isinstance(value, dict) else []


def _kernels(stage: StageFiles) -> str:
    recipe = Recipe.of(stage.plan.get("kernels"))
    return f"{stage.plan.get('computes_in')}, {recipe.text}; speeds planned {stage.plan.get('basis')}" if recipe else "–"


def tuning(stage: StageFiles) -> str:
    """What scripts.tune found on the machine of a stage: the fastest ways, and what was struck out. Empty where it was not run."""
    question = stage.plan.get("question") or {}
    profile = profile_of(next((gpu for gpu in (*GPUS, cpu(0.0)) if gpu.name == question.get("gpu")), cpu(0.0)))
    if profile is None or not profile.tuned or profile.machine != question.get("machine"):
        return ""
    header = ["depth", "sequence", "precision", "kernels", "tok/s of a rank", "MFU", "forward (s)", "backward (s)", "optimizer (s)"]
    rows = []
    for each in profile.figures:
        seconds = [number(each.get(f"{part}_s"), ".3f") for part in ("forward", "backward", "optimizer")]
        speed = [number(each.get("tok_per_s"), ",.0f"), _percent(each.get("mfu"))]
        rows.append([each.get("depth"), each.get("max_seq_len"), each.get("precision"), each.get("recipe"), *speed, *seconds])
    text = f"By `scripts.tune` on {profile.date}, torch {profile.torch}" + (f", driver {profile.driver}" if profile.driver else "") + "."
    text += "\n\n" + table(header, rows)
    struck = [f"{each['precision']} {each['name']}: {each.get('note') or each['error']}" for each in profile.proofs if not each["passed"]]
    lines = [f"- struck out: {line}" for line in (*struck, *profile.struck)]
    return text + ("\n\n" + "\n".join(lines) if lines else "")


def training(stage: StageFiles) -> str:
    """How a stage went: time, speed, losses, and predicted against actual."""
    losses = [value for _, value in stage.series("loss")]
    world_size = (stage.plan.get("question") or {}).get("world_size", 1)
    rows: list[list[object]] = [
        ["state", _state(stage)],
        ["on", f"{world_size} × {(stage.plan.get('question') or {}).get('gpu', 'unknown')}"],
        ["kernels", _kernels(stage)],
        ["steps", number(stage.last("step"), ",.0f")],
        ["tokens", number(stage.last("tokens"), ",.0f")],
        ["time", duration(stage.last("elapsed_s"))],
        ["cost", _money(usd(stage))],
        ["tokens a second, median of the second half", number(_late(stage, "tok_per_sec"), ",.0f")],
        ["MFU, likewise", _percent(_late(stage, "mfu"))],
        ["loss: first, lowest, last", " / ".join(number(v) for v in (losses[0], min(losses), losses[-1])) if losses else "–"],
        ["validation", _validation(stage)],
    ]
    for key, said in (("reward", "reward, mean of the first and of the last step"), ("pass_at_1", "pass@1, likewise")):
        values = [value for _, value in stage.series(key)]
        if values:
            rows.append([said, f"{values[0]:.3f} / {values[-1]:.3f}"])
    measured = {key: value for row in stage.evaluations for key, value in row.items() if key not in NOT_TASKS}
    rows += [[f"held-out accuracy, {name}", _percent(value)] for name, value in sorted(measured.items())]
    if stage.base_loss:
        rows.append(["bits per byte, held out", number(stage.base_loss.get("val_bpb"))])
        rows.append(["`xz -9e` on the same bytes", number(stage.base_loss.get("xz_bpb"))])
    text = table(["", ""], rows) + "\n"
    for name, part in (stage.mixture.get("parts") or {}).items():
        often = "never the same twice" if part.get("size") is None else f"{part.get('epochs', 0):.2f} epochs of {part['size']:,}"
        text += f"\n- {name}: {part.get('conversations_per_pass', 0):,} conversations a pass, {often}"
        if part.get("too_long_per_pass"):
            text += f"; {part['too_long_per_pass']:,} longer than a row, left out"
    return text


def predicted(stages: list[StageFiles]) -> str:
    """What the planner said against what came: a step's time, the peak of memory, hours and dollars."""
    rows = []
    for stage in stages:
        step_s, peak = stage.plan.get("predicted_step_s"), stage.plan.get("predicted_peak_gib")
        actual_s = _late(stage, "step_s")
        if actual_s is None or peak is None or not stage.plan.get("on_gpu"):
            continue
        actual_peak = _peak(stage)
        off = f"{actual_s / step_s - 1:+.1%}" if step_s else "–"
        steps, price = stage.last("step") or 0, price_per_hour(stage) or 0
        hours = step_s * steps / 3600 if step_s else None
        elapsed_h = (stage.last("elapsed_s") or 0) / 3600
        rows.append(
            [
                stage.name,
                number(step_s, ".3f"),
                number(actual_s, ".3f"),
                off,
                number(peak, ".1f"),
                number(actual_peak, ".1f"),
                number(hours, ".2f"),
                number(elapsed_h, ".2f"),
                _money(hours * price if hours is not None else None),
                _money(elapsed_h * price),
            ]
        )
    if not rows:
        return "The planner predicts steps on GPUs; this run had none."
    header = [
        "stage",
        "step (s)",
        "actual",
        "off by",
        "peak (GiB)",
        "actual",
        "hours of its steps",
        "actual, with all else",
        "cost",
        "actual",
    ]
    return table(header, rows)


def _interval(one: dict[str, Any]) -> str:
    return f"{one['accuracy']:.1%} ({one['low']:.1%} to {one['high']:.1%})"


def chat_scores(stages: list[StageFiles]) -> str:
    """Accuracy by task and stage, with 95 % intervals."""
    asked = {stage.name: stage.chat["tasks"] for stage in stages if isinstance(stage.chat.get("tasks"), dict)}
    if not asked:
        return "No chat model was evaluated."
    names = list(dict.fromkeys(name for results in asked.values() for name in results))
    rows: list[list[object]] = []
    for name in names:
        one = next(results[name] for results in asked.values() if name in results)
        constant = one.get("best_constant")
        cells = [_interval(results[name]) if name in results else "–" for results in asked.values()]
        rows.append([name, *cells, _percent(one.get("chance")), _percent(constant), f"{one['total']:,}"])
    chat_core = [number(stage.chat.get("chatcore"), ".4f") for stage in stages if stage.name in asked]
    rows.append(["ChatCORE", *chat_core, "", "", ""])
    of = list(dict.fromkeys(name for stage in stages for name in stage.chat.get("chatcore_tasks") or []))
    text = table(["task", *asked, "guessing", "best constant answer", "questions"], rows)
    return f"{text}\n\nChatCORE is the mean of the centred accuracies of {', '.join(of) or 'no task'}."


def core_scores(stage: StageFiles) -> str:
    """CORE's tasks with 95 % intervals."""
    if not stage.core:
        return "CORE was not evaluated."
    rows = [
        [name, _interval(one), _percent(one["chance"]), number(one["centered"], ".4f"), f"{one['total']:,}", one["shots"]]
        for name, one in stage.core["tasks"].items()
    ]
    rows.append(["CORE", "", "", number(stage.core.get("core"), ".4f"), "", ""])
    text = table(["task", "accuracy (95 % interval)", "guessing", "centred", "questions", "shots"], rows)
    text += f"\n\nBundle: {stage.core.get('bundle')}."
    if overlap := stage.core.get("overlap"):
        text += (
            f" {overlap['found']:,} of {overlap['questions']:,} questions ({overlap['share']:.2%}) have {overlap['n']} words in a row that "
            f"stand in the training text ({overlap['text']}); {overlap.get('too_short', 0):,} are too short to be looked for."
        )
    else:
        text += " Whether the questions stand in the training text was not looked at."
    return text


def samples(stage: StageFiles) -> str:
    """What a base model wrote after some prompts."""
    return "\n".join(block(f"{row.get('prompt', '')}{row.get('text', '')}") for row in stage.samples)


def transcript(stage: StageFiles) -> str:
    """Conversations with a chat model, tool calls shown."""
    shown = []
    for conversation in stage.transcript:
        lines = []
        for message in conversation.get("messages", []):
            content = message.get("content")
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
            marks = {"text": "{}", "python": "[calculator: {}]", "python_output": "[= {}] "}
            said = "".join(marks.get(str(part.get("type")), "{}").format(part.get("text", "")) for part in parts)
            lines.append(f"{message.get('role', '?')}: {said}")
        shown.append(block("\n".join(lines)))
    return "\n".join(shown)
