"""The digest of code: of a file and of all that it imports, of syntax only."""
from edited_sources import edit, fresh  # noqa: F401 (fixtures)

from zsq_lab.code_version import code_version, files_version


def test_a_file_counts_with_all_that_it_imports(edit):
    before = {name: files_version(name) for name in ("images", "zscgan", "plots")}
    edit("bn_stats.py", "import torch\n", "import torch\ntorch.set_flush_denormal(True)\n")
    assert files_version("images") != before["images"] and files_version("zscgan") != before["zscgan"]
    before = {name: files_version(name) for name in before}
    edit("zscgan.py", "import torch\n", "import torch\ntorch.set_flush_denormal(True)\n")
    assert files_version("zscgan") != before["zscgan"] and files_version("images") == before["images"]
    assert len(files_version("images")) == 16 and files_version("images", "zscgan") not in before.values()


def test_what_is_said_in_comments_does_not(edit):
    before = files_version("images"), code_version("zeroq")
    edit("images.py", "SHIFT = 2  #", "SHIFT = 2  # say,")
    edit("images.py", '"""Images from statistics', '"""Pictures from statistics')
    assert (files_version("images"), code_version("zeroq")) == before
    edit("images.py", "SHIFT = 2  #", "SHIFT = 1  #")
    assert files_version("images") != before[0] and code_version("zeroq") != before[1]


def test_no_file_of_the_module_is_no_code_of_it():
    assert files_version() == files_version("torch") != files_version("images")
