"""Damaged picture files are decoded or refused with a reason, by device and server, whatever their decoder raises."""

from __future__ import annotations

import pytest
from PIL import ImageFile

from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.contract.formats.picture_files import fault_of
from qwen3vl_edge.tools.dev.fuzz.pictures import damaged_file, fault, faults, formats, readers, whole_files

FILES = 40  # of each format
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about damaged metadata


@pytest.mark.parametrize("form", formats())
def test_a_damaged_file_is_decoded_or_refused(form: str) -> None:
    for content in whole_files(form):
        assert fault(readers()["device"], content) is None
    assert list(faults(1, range(FILES), form)) == []


def test_damage_is_the_same_for_the_same_number() -> None:
    assert damaged_file(1, 7) == damaged_file(1, 7)
    assert len({damaged_file(1, number).content for number in range(50)}) > 45


def test_most_damage_is_found() -> None:
    """Else the test above would show nothing."""

    def refused(number: int) -> bool:
        try:
            readers()["device"](damaged_file(1, number).content)
        except ContractError:
            return True
        return False

    assert sum(refused(number) for number in range(200)) > 60


@pytest.mark.parametrize(
    "raised",
    [
        AttributeError("x"),
        IndexError(),
        KeyError(3),
        MemoryError(),
        RuntimeError("a\nb"),
        SystemError("tile"),
        TypeError(),
    ],
)
def test_whatever_a_decoder_raises_is_a_refusal(raised: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's plugins have no common error."""
    content = whole_files("PNG")[0]
    for read in readers().values():
        with monkeypatch.context() as patched:
            patched.setattr(ImageFile.ImageFile, "load", lambda _: (_ for _ in ()).throw(raised))
            assert fault(read, content) is None
            with pytest.raises(InputError, match=rf"corrupt \({type(raised).__name__}"):
                read(content)


def test_the_reason_is_one_line() -> None:
    assert fault_of(OSError("broken\n data stream")) == "broken data stream"
    assert fault_of(KeyError("x")) == "KeyError: 'x'"
    assert fault_of(MemoryError()) == "MemoryError"
    assert fault_of(OSError()) == "OSError"
    assert len(fault_of(ValueError("x" * 1000))) < 200
