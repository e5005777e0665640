"""Claims: an item is one worker's as long as that worker lives, and nobody's after."""
import json
import os
import socket
import threading
import time

import pytest
from sweep_workers import dead_pid, items, kinds, put_claim, wait_until

from zsq_lab import claims
from zsq_lab.claims import STALE, alive, claim

ITEM = items(1)[0]


@pytest.mark.parametrize("content", ["", '{"host": ', "[]", json.dumps({"host": socket.gethostname()}),
                                     json.dumps({"host": socket.gethostname(), "pid": "one"})])
def test_of_a_half_written_claim_its_age_decides(tmp_path, content):
    file = tmp_path / f"{ITEM.digest()}.running"
    file.write_text(content)
    assert alive(file)
    os.utime(file, (time.time() - STALE - 1,) * 2)
    assert not alive(file)


def test_a_dead_claim_is_taken_over_by_one_only(tmp_path, monkeypatch):
    put_claim(tmp_path, ITEM, pid=dead_pid())
    both, judge, mine = threading.Barrier(2), alive, []

    def judged(*claimed):
        answer = judge(*claimed)
        both.wait(60)  # both have seen the dead claim before either takes it over
        return answer
    monkeypatch.setattr(claims, "alive", judged)

    def take():
        with claim(tmp_path, ITEM) as free:
            mine.append(free)
            both.wait(60)
    pair = [threading.Thread(target=take) for _ in range(2)]
    for thread in pair:
        thread.start()
    for thread in pair:
        thread.join(60)
    assert sorted(mine) == [False, True]
    assert kinds(tmp_path)["running"] == 0


def test_a_claim_shows_signs_of_life_and_goes_with_its_item(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT", 0.01)
    claims._start_heart.cache_clear()  # the one that beats may sleep for long
    file = tmp_path / f"{ITEM.digest()}.running"
    with pytest.raises(RuntimeError, match="by itself"), claim(tmp_path, ITEM) as mine:
        assert mine and alive(file) and json.loads(file.read_text())["pid"] == os.getpid()
        os.utime(file, (0, 0))
        wait_until(lambda: file.stat().st_mtime > 0)
        raise RuntimeError("an item fails by itself")
    assert not file.exists()
