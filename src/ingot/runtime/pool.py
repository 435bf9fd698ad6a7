"""The worker threads of this process, as LLVM IR: they spin between kernels and sleep between runs.

`Pool.run` is one native call: it walks a table of calls (function, buffers, symbols), every thread calling every
function with its number, a barrier after each. Workers spin about 50 us after a run, then sleep on a futex. At a
barrier a thread spins for 20 us and then sleeps, too, and none is pinned: where another process takes a core, the
thread that lost it moves to the one that the waiting thread left, instead of both standing still for a time slice.
(ResNet-18 in bf16, two cores, one busy process beside it, medians of 3.5 s: pinned and yielding 35.4 ms, sleeping 16.0,
sleeping and not pinned 14.0; without the process 7.2, 7.0 and 6.9.)
A run that finds another one under way does not wait for it: it runs alone, on its own thread.
"""
from __future__ import annotations

import atexit
import ctypes
import mmap
import os
import threading
import time
from collections.abc import Sequence
from functools import cache

from ingot.errors import InternalError
from ingot.runtime.compiler import CodeCache, Library, compile_code, load_object
from ingot.target import Target

# i64 words of the context, each word that is written in a run on a cache line of its own
EPOCH, DONE, ARRIVED, BARRIER, SLEEPERS, ACTIVE = 0, 8, 16, 24, 32, 40
THREADS, STOP, IDLE_SPIN, BARRIER_SPIN = 48, 49, 50, 51
DOZING = 52                     # threads that sleep at a barrier
TABLE, COUNT, TIMES = 56, 57, 58
BLOCKS, BLOCK = 64, 8           # per worker: context, number, its pthread_t
HANDLE = 2
ENTRY = 3                       # words of a table entry: function, buffers, symbols

_SYSTEM = {     # what differs by architecture: the pause, and numbers of the system calls
    "x86": {"PAUSE": "call void @llvm.x86.sse2.pause()", "DECLARE": "declare void @llvm.x86.sse2.pause()",
            "FUTEX": 202, "SIGMASK": 14},
    "neon": {"PAUSE": "call void @llvm.aarch64.hint(i32 1)", "DECLARE": "declare void @llvm.aarch64.hint(i32)",
             "FUTEX": 98, "SIGMASK": 135},
}

_CODE = r"""
@patience = private constant [2 x i64] [i64 0, i64 500000]  ; ns: who was not woken looks again
declare i64 @syscall(i64, ...)
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_join(i64, ptr)
declare i64 @llvm.readcyclecounter()
$DECLARE

define void @spin(i64 %n) {
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%i1, %loop]
  $PAUSE
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, %n
  br i1 %more, label %loop, label %end
end:
  ret void
}

; wait until the i64 at %p differs from %old (%until = 0), or equals it (%until = 1)
define internal void @wait(ptr %ctx, ptr %p, i64 %old, i1 %until) {
entry:
  %limit.p = getelementptr i64, ptr %ctx, i64 $BARRIER_SPIN
  %limit = load i64, ptr %limit.p
  br label %test
test:
  %t = phi i64 [0, %entry], [%t1, %pause], [%t, %doze]
  %now = load atomic i64, ptr %p seq_cst, align 8
  %same = icmp eq i64 %now, %old
  %over = icmp eq i1 %same, %until
  br i1 %over, label %out, label %again
again:
  %patient = icmp slt i64 %t, %limit
  br i1 %patient, label %pause, label %doze
pause:
  $PAUSE
  %t1 = add i64 %t, 1
  br label %test
doze:                                     ; another thread has lost its core, or there are too few: leave it this one
  %s.p = getelementptr i64, ptr %ctx, i64 $DOZING
  %s0 = atomicrmw add ptr %s.p, i64 1 seq_cst
  %now32 = trunc i64 %now to i32
  %r = call i64 (i64, ...) @syscall(i64 $FUTEX, ptr %p, i64 128, i32 %now32, ptr @patience, ptr null, i64 0)
  %s1 = atomicrmw sub ptr %s.p, i64 1 seq_cst
  br label %test
out:
  ret void
}

; wake who sleeps on %p, which has just been written
define internal void @rouse(ptr %ctx, ptr %p) {
entry:
  fence seq_cst
  %s.p = getelementptr i64, ptr %ctx, i64 $DOZING
  %s = load atomic i64, ptr %s.p seq_cst, align 8
  %some = icmp sgt i64 %s, 0
  br i1 %some, label %wake, label %out
wake:
  %r = call i64 (i64, ...) @syscall(i64 $FUTEX, ptr %p, i64 129, i32 2147483647, ptr null, ptr null, i64 0)
  br label %out
out:
  ret void
}

define internal void @barrier(ptr %ctx, i64 %n) {
entry:
  %c.p = getelementptr i64, ptr %ctx, i64 $ARRIVED
  %e.p = getelementptr i64, ptr %ctx, i64 $BARRIER
  %e = load atomic i64, ptr %e.p acquire, align 8
  %old = atomicrmw add ptr %c.p, i64 1 acq_rel
  %mine = add i64 %old, 1
  %last = icmp eq i64 %mine, %n
  br i1 %last, label %open, label %spin
open:
  store atomic i64 0, ptr %c.p monotonic, align 8
  %e1 = add i64 %e, 1
  store atomic i64 %e1, ptr %e.p release, align 8
  call void @rouse(ptr %ctx, ptr %e.p)
  ret void
spin:
  call void @wait(ptr %ctx, ptr %e.p, i64 %e, i1 false)
  ret void
}

; call every function of the table; between two of them, all threads meet
define internal void @program(ptr %ctx, ptr %table, i64 %count, ptr %times, i64 %tid, i64 %n) {
entry:
  %alone = icmp eq i64 %n, 1
  %first = icmp eq i64 %tid, 0
  %given = icmp ne ptr %times, null
  %stamped = and i1 %first, %given
  %any = icmp sgt i64 %count, 0
  br i1 %any, label %loop, label %end
loop:
  %i = phi i64 [0, %entry], [%i1, %next]
  %at = mul i64 %i, 3
  %f.p = getelementptr i64, ptr %table, i64 %at
  %b.p = getelementptr i64, ptr %f.p, i64 1
  %s.p = getelementptr i64, ptr %f.p, i64 2
  %f = load ptr, ptr %f.p
  %b = load ptr, ptr %b.p
  %s = load ptr, ptr %s.p
  call void %f(ptr %b, ptr %s, i64 %tid, i64 %n)
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, %count
  %last = xor i1 %more, true
  %quiet = xor i1 %given, true
  %done = and i1 %last, %quiet
  %skip = or i1 %alone, %done             ; the end of the run is a barrier already
  br i1 %skip, label %stamp, label %meet
meet:
  call void @barrier(ptr %ctx, i64 %n)
  br label %stamp
stamp:
  br i1 %stamped, label %store, label %next
store:
  %now = call i64 @llvm.readcyclecounter()
  %t.p = getelementptr i64, ptr %times, i64 %i1
  store i64 %now, ptr %t.p
  br label %next
next:
  br i1 %more, label %loop, label %end
end:
  ret void
}

define ptr @worker(ptr %block) {
entry:
  %all = alloca i64
  store i64 -1, ptr %all
  %masked = call i64 (i64, ...) @syscall(i64 $SIGMASK, i64 0, ptr %all, ptr null, i64 8)
  %ctx = load ptr, ptr %block
  %tid.p = getelementptr i64, ptr %block, i64 1
  %tid = load i64, ptr %tid.p
  br label %begin
begin:
  %stop.p = getelementptr i64, ptr %ctx, i64 $STOP
  %sleep.p = getelementptr i64, ptr %ctx, i64 $SLEEPERS
  %done.p = getelementptr i64, ptr %ctx, i64 $DONE
  %threads.p = getelementptr i64, ptr %ctx, i64 $THREADS
  %limit.p = getelementptr i64, ptr %ctx, i64 $IDLE_SPIN
  %table.p = getelementptr i64, ptr %ctx, i64 $TABLE
  %count.p = getelementptr i64, ptr %ctx, i64 $COUNT
  %times.p = getelementptr i64, ptr %ctx, i64 $TIMES
  %n = load i64, ptr %threads.p
  %limit = load i64, ptr %limit.p
  br label %idle
idle:
  %seen = phi i64 [0, %begin], [%now, %work]
  br label %look
look:
  %t = phi i64 [0, %idle], [%t1, %rest], [%t, %asleep]
  %now = load atomic i64, ptr %ctx seq_cst, align 8
  %new = icmp ne i64 %now, %seen
  br i1 %new, label %go, label %wait
wait:
  %tired = icmp sge i64 %t, %limit
  br i1 %tired, label %asleep, label %rest
rest:
  $PAUSE
  %t1 = add i64 %t, 1
  br label %look
asleep:
  %s0 = atomicrmw add ptr %sleep.p, i64 1 seq_cst
  %seen32 = trunc i64 %seen to i32
  %r = call i64 (i64, ...) @syscall(i64 $FUTEX, ptr %ctx, i64 128, i32 %seen32, ptr null, ptr null, i64 0)
  %s1 = atomicrmw sub ptr %sleep.p, i64 1 seq_cst
  br label %look
go:
  %stop = load atomic i64, ptr %stop.p acquire, align 8
  %quit = icmp ne i64 %stop, 0
  br i1 %quit, label %out, label %work
work:
  %table = load ptr, ptr %table.p
  %count = load i64, ptr %count.p
  %times = load ptr, ptr %times.p
  call void @program(ptr %ctx, ptr %table, i64 %count, ptr %times, i64 %tid, i64 %n)
  %d = atomicrmw add ptr %done.p, i64 1 acq_rel
  call void @rouse(ptr %ctx, ptr %done.p)
  br label %idle
out:
  ret ptr null
}

define i32 @start(ptr %block) {
  %h = getelementptr i64, ptr %block, i64 $HANDLE
  %r = call i32 @pthread_create(ptr %h, ptr null, ptr @worker, ptr %block)
  ret i32 %r
}

define void @stop(ptr %ctx) {
  %stop.p = getelementptr i64, ptr %ctx, i64 $STOP
  store atomic i64 1, ptr %stop.p release, align 8
  %e = atomicrmw add ptr %ctx, i64 1 seq_cst
  %r = call i64 (i64, ...) @syscall(i64 $FUTEX, ptr %ctx, i64 129, i32 2147483647, ptr null, ptr null, i64 0)
  ret void
}

define void @join(ptr %block) {
  %h.p = getelementptr i64, ptr %block, i64 $HANDLE
  %h = load i64, ptr %h.p
  %r = call i32 @pthread_join(i64 %h, ptr null)
  ret void
}

define i64 @run(ptr %ctx, ptr %table, i64 %count, ptr %times) {
entry:
  %given = icmp ne ptr %times, null
  br i1 %given, label %stamp, label %enter
stamp:
  %now = call i64 @llvm.readcyclecounter()
  store i64 %now, ptr %times
  br label %enter
enter:
  %n.p = getelementptr i64, ptr %ctx, i64 $THREADS
  %n = load i64, ptr %n.p
  %many = icmp sgt i64 %n, 1
  br i1 %many, label %ask, label %single
single:
  call void @program(ptr %ctx, ptr %table, i64 %count, ptr %times, i64 0, i64 1)
  ret i64 1
ask:
  %active.p = getelementptr i64, ptr %ctx, i64 $ACTIVE
  %others = atomicrmw add ptr %active.p, i64 1 seq_cst
  %free = icmp eq i64 %others, 0
  br i1 %free, label %together, label %alone
alone:                                        ; other runs are under way: they and this one keep to one thread each
  call void @program(ptr %ctx, ptr %table, i64 %count, ptr %times, i64 0, i64 1)
  %left = atomicrmw sub ptr %active.p, i64 1 seq_cst
  ret i64 1
together:
  %table.p = getelementptr i64, ptr %ctx, i64 $TABLE
  %count.p = getelementptr i64, ptr %ctx, i64 $COUNT
  %times.p = getelementptr i64, ptr %ctx, i64 $TIMES
  store ptr %table, ptr %table.p
  store i64 %count, ptr %count.p
  store ptr %times, ptr %times.p
  %done.p = getelementptr i64, ptr %ctx, i64 $DONE
  store atomic i64 0, ptr %done.p release, align 8
  %e = atomicrmw add ptr %ctx, i64 1 seq_cst
  %sleep.p = getelementptr i64, ptr %ctx, i64 $SLEEPERS
  %s = load atomic i64, ptr %sleep.p seq_cst, align 8
  %wake = icmp sgt i64 %s, 0
  br i1 %wake, label %call, label %go
call:
  %r = call i64 (i64, ...) @syscall(i64 $FUTEX, ptr %ctx, i64 129, i32 2147483647, ptr null, ptr null, i64 0)
  br label %go
go:
  call void @program(ptr %ctx, ptr %table, i64 %count, ptr %times, i64 0, i64 %n)
  %rest = sub i64 %n, 1
  call void @wait(ptr %ctx, ptr %done.p, i64 %rest, i1 true)
  %freed = atomicrmw sub ptr %active.p, i64 1 seq_cst
  ret i64 %n
}
"""


def pool_code(kind: str = "x86") -> str:
    """The pool's LLVM IR for a kind of target."""
    text = _CODE
    words = {"BARRIER_SPIN": BARRIER_SPIN, "IDLE_SPIN": IDLE_SPIN, "ARRIVED": ARRIVED, "BARRIER": BARRIER,
             "SLEEPERS": SLEEPERS, "ACTIVE": ACTIVE, "THREADS": THREADS, "STOP": STOP, "DONE": DONE, "TABLE": TABLE,
             "COUNT": COUNT, "TIMES": TIMES, "DOZING": DOZING, "HANDLE": HANDLE, **_SYSTEM[kind]}
    for name in sorted(words, key=len, reverse=True):
        text = text.replace(f"${name}", str(words[name]))
    return text


@cache
def _library(target: Target, cache: CodeCache | None) -> Library:
    return load_object(compile_code(pool_code(target.kind), target, cache, "pool"), target)


class Pool:
    """`threads` threads, the caller included. Workers start with the first run, and again after a fork."""

    def __init__(self, target: Target, threads: int, cache: CodeCache | None = None, *, idle_us: float = 50.0) -> None:
        self.threads = threads
        self._library = _library(target, cache)
        pointer, word = ctypes.c_void_p, ctypes.c_int64
        self._run = ctypes.CFUNCTYPE(word, pointer, pointer, word, pointer)(self._library.address("run"))
        self._start = ctypes.CFUNCTYPE(ctypes.c_int, pointer)(self._library.address("start"))
        self._stop = ctypes.CFUNCTYPE(None, pointer)(self._library.address("stop"))
        self._join = ctypes.CFUNCTYPE(None, pointer)(self._library.address("join"))
        spin = ctypes.CFUNCTYPE(None, word)(self._library.address("spin"))
        spin(100)
        begin = time.perf_counter_ns()
        spin(1000)
        self._pauses = 1000 / max(1.0, (time.perf_counter_ns() - begin) / 1000)     # per us
        self._idle_us = idle_us
        self.reset()

    def reset(self) -> None:
        """The state before any worker is started, in memory of its own (a forked child leaves its parent's alone)."""
        self._lock = threading.Lock()
        self._started = self.threads == 1
        self._memory = mmap.mmap(-1, 8 * (BLOCKS + BLOCK * self.threads), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._words = (ctypes.c_int64 * (BLOCKS + BLOCK * self.threads)).from_buffer(self._memory)
        self._context = ctypes.addressof(self._words)
        self._words[THREADS] = self.threads
        self._words[IDLE_SPIN] = int(self._idle_us * self._pauses)
        self._words[BARRIER_SPIN] = int(20 * self._pauses)

    def start(self) -> None:
        """Start the workers, unless they run already."""
        with self._lock:
            if self._started:
                return
            for worker in range(1, self.threads):
                at = BLOCKS + BLOCK * worker
                self._words[at], self._words[at + 1] = self._context, worker
                if code := self._start(self._context + 8 * at):
                    raise InternalError(f"a worker thread cannot be started (error {code})")
            self._started = True

    def run(self, table: int, count: int, times: int | None = None) -> int:
        """Run the `count` calls of the table at this address; gives the number of threads that took part.

        `times` is the address of count+1 words for the cycle counter: at the start, then after each call.
        """
        if not self._started:
            self.start()
        threads: int = self._run(self._context, table, count, times)
        return threads

    def close(self) -> None:
        """End the workers. A later run starts new ones."""
        with self._lock:
            if self._started and self.threads > 1:
                self._stop(self._context)
                for worker in range(1, self.threads):
                    self._join(self._context + 8 * (BLOCKS + BLOCK * worker))
        self.reset()


class _Registry:
    """The pools of this process, one for each target and number of threads."""

    def __init__(self) -> None:
        self.pools: dict[tuple[Target, int], Pool] = {}
        self.lock = threading.Lock()

    def after_fork(self) -> None:
        self.lock = threading.Lock()        # another thread may have held it, and is not here to release it
        for pool in self.pools.values():
            pool.reset()

    def close(self) -> None:
        for pool in self.pools.values():
            pool.close()


_registry = _Registry()
os.register_at_fork(after_in_child=_registry.after_fork)
atexit.register(_registry.close)


def pool_for(target: Target, threads: int, cache: CodeCache | None = None) -> Pool:
    """This process's pool of so many threads; made once."""
    with _registry.lock:
        found = _registry.pools.get((target, threads))
        if found is None:
            found = _registry.pools[target, threads] = Pool(target, threads, cache)
        return found


def launch_table(calls: Sequence[tuple[int, int, int]]) -> ctypes.Array[ctypes.c_int64]:
    """A table for `Pool.run`, of (function, buffers, symbols) addresses."""
    return (ctypes.c_int64 * max(1, ENTRY * len(calls)))(*(word for call in calls for word in call))
