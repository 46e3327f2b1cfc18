from pathlib import Path

import pytest

from nanochat.common.markdown import mark, with_parts
from nanochat.plan import documents


@pytest.mark.parametrize("document", documents.DOCUMENTS)
def test_no_table_of_a_document_is_stale(document: str) -> None:
    text = (documents.ROOT / document).read_text()
    assert "<!-- made: " in text
    assert documents.made(document) == text, "python -m scripts.plan --write_docs"


def test_parts_are_replaced_and_the_rest_stays() -> None:
    text = f"before\n{mark('a')}between\n{mark('b')}after\n"
    once = with_parts(text, str.upper)
    assert once == "before\n<!-- made: a -->\nA\n<!-- end -->\nbetween\n<!-- made: b -->\nB\n<!-- end -->\nafter\n"
    assert with_parts(once, str.upper) == once


def test_documents_are_written_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("no table\n")
    (tmp_path / "DESIGN_3B_7B.md").write_text(mark("budgets"))
    documents.write_documents()
    assert (tmp_path / "README.md").read_text() == "no table\n"
    assert "| 38 | 8 | 24.1 B |" in (tmp_path / "DESIGN_3B_7B.md").read_text()
    (tmp_path / "DESIGN_3B_7B.md").write_text(mark("no-such-table"))
    with pytest.raises(KeyError):
        documents.write_documents()
