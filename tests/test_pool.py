"""The worker pool: many runs, many threads, forks, idleness, oversubscription."""
import ctypes
import itertools
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from ingot.runtime.compiler import compile_code, load_object
from ingot.runtime.host import available_cpus, host_target
from ingot.runtime.pool import Pool, launch_table, pool_code
from ingot.target import Target

pytestmark = pytest.mark.cpu

# every thread adds one to its own share of the words, so a missed or doubled call shows in the sums
COUNT = """
define void @count(ptr %buffers, ptr %symbols, i64 %thread, i64 %threads) {
entry:
  %x = load ptr, ptr %buffers
  br label %head
head:
  %i = phi i64 [%thread, %entry], [%i1, %body]
  %more = icmp slt i64 %i, 64
  br i1 %more, label %body, label %done
body:
  %p = getelementptr i64, ptr %x, i64 %i
  %a = load i64, ptr %p
  %b = add i64 %a, 1
  store i64 %b, ptr %p
  %i1 = add i64 %i, %threads
  br label %head
done:
  ret void
}
; x[i] = x[(i + 1) mod 64] + 1 into the other buffer: wrong unless all threads met before
define void @shift(ptr %buffers, ptr %symbols, i64 %thread, i64 %threads) {
entry:
  %x = load ptr, ptr %buffers
  %y.p = getelementptr ptr, ptr %buffers, i64 1
  %y = load ptr, ptr %y.p
  br label %head
head:
  %i = phi i64 [%thread, %entry], [%i1, %body]
  %more = icmp slt i64 %i, 64
  br i1 %more, label %body, label %done
body:
  %i.next = add i64 %i, 1
  %j = and i64 %i.next, 63
  %p = getelementptr i64, ptr %x, i64 %j
  %a = load i64, ptr %p
  %b = add i64 %a, 1
  %q = getelementptr i64, ptr %y, i64 %i
  store i64 %b, ptr %q
  %i1 = add i64 %i, %threads
  br label %head
done:
  ret void
}
"""
TARGET = host_target()
CODE = load_object(compile_code(COUNT, TARGET), TARGET)


class Work:
    """A table of alternating shifts between two buffers."""

    def __init__(self, launches: int, function: str = "shift") -> None:
        self.x, self.y = np.arange(64), np.zeros(64, np.int64)
        self.there = (ctypes.c_void_p * 2)(self.x.ctypes.data, self.y.ctypes.data)
        self.back = (ctypes.c_void_p * 2)(self.y.ctypes.data, self.x.ctypes.data)
        at = CODE.address(function)
        self.table = launch_table([(at, ctypes.addressof(self.back if i % 2 else self.there), 0)
                                   for i in range(launches)])
        self.launches, self.runs = launches, 0

    def run(self, pool: Pool) -> int:
        self.runs += 1
        return pool.run(ctypes.addressof(self.table), self.launches)

    def right(self) -> bool:
        steps = self.launches * self.runs       # an even number of launches: the result lies in x
        return bool(np.array_equal(self.x, (np.arange(64) + steps) % 64 + steps))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("launches", [2, 50])
def test_thousands_of_runs_are_right(threads: int, launches: int) -> None:
    pool, work = Pool(TARGET, threads), Work(launches)
    runs = 3000 if threads <= len(available_cpus()) else 60
    for _ in range(runs):
        assert work.run(pool) == threads
    assert work.right()
    pool.close()


def test_many_callers_share_a_pool_without_waiting_for_each_other() -> None:
    pool = Pool(TARGET, 2)
    works = [Work(20) for _ in range(8)]
    used: list[set[int]] = [set() for _ in works]

    def call(i: int) -> None:
        used[i].update(works[i].run(pool) for _ in range(500))

    callers = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for c in callers:
        c.start()
    for c in callers:
        c.join()
    assert all(w.right() and w.runs == 500 for w in works)
    assert set().union(*used) <= {1, 2}
    pool.close()


def test_runs_after_pauses_find_the_sleeping_workers() -> None:
    pool, work = Pool(TARGET, 2), Work(4)
    for pause in (0, 0.00005, 0.0001, 0.001, 0.01) * 20:
        time.sleep(pause)
        work.run(pool)
    assert work.right()
    pool.close()


def test_idle_workers_sleep() -> None:
    pool, work = Pool(TARGET, 2), Work(4)
    work.run(pool)
    time.sleep(0.02)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.005     # 1 %
    pool.close()


def test_a_closed_pool_starts_again() -> None:
    pool, work = Pool(TARGET, 3), Work(4)
    for _ in range(5):
        work.run(pool)
        pool.close()
    assert work.right()


def test_times_are_stamped_in_order() -> None:
    for threads in (1, 2):
        pool, work = Pool(TARGET, threads), Work(6)
        times = (ctypes.c_int64 * 7)()
        for _ in range(50):
            pool.run(ctypes.addressof(work.table), 6, ctypes.addressof(times))
        assert all(a < b for a, b in itertools.pairwise(times))
        pool.close()


FORK = """
import os, sys, time
sys.path[:0] = {path!r}
from test_pool import *
from ingot.runtime.pool import pool_for
pool, work = pool_for(TARGET, 2), Work(4)
work.run(pool)
child = os.fork()
for _ in range(200):
    work.run(pool)
assert work.right()
if not child:
    sys.exit(0)            # through the exit handlers
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_has_workers_of_its_own() -> None:
    path = [os.path.dirname(__file__), *sys.path]
    done = subprocess.run([sys.executable, "-c", FORK.format(path=path)], timeout=60, check=False)
    assert done.returncode == 0


def test_the_pool_compiles_for_arm() -> None:
    assert compile_code(pool_code("neon"), Target("neon", "neon", frozenset(), "neoverse-n1"))
