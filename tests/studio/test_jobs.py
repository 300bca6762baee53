"""The queue, the turns at the network, cancellation, failures and the bounds of memory."""

import threading
import time

import pytest

from rad.inpainting.result import Cancelled
from rad.studio.jobs import job as job_module
from rad.studio.jobs.job import Files, Job
from rad.studio.jobs.queue import Full, JobQueue
from rad.studio.jobs.turns import Turn, Turnstile
from rad.studio.schema import InpaintFields
from rad.studio.service import explain
from tests.studio.server import box, make_service, photo


def wait_for(condition, seconds=120.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def make_job(work, **changes):
    values = dict(model="m", method="rad", steps=1, planned=1, width=8, height=8, samples=1, stem="a")
    return Job(**{**values, "work": work, **changes})


@pytest.fixture
def queue():
    queues = []

    def make(lanes=1, limit=50, most_bytes=1e9, most_seconds=3600.0):
        queues.append(
            JobQueue(lanes=lanes, limit=limit, most_bytes=most_bytes, most_seconds=most_seconds, explain=explain)
        )
        return queues[-1]

    yield make
    for queue in queues:
        queue.close()
        queue.join()


def test_threads_take_turns_in_order_and_seconds_count_their_own_work():
    turnstile, order, seconds = Turnstile(), [], {}

    def work(name):
        with Turn(turnstile) as turn:
            for _ in range(6):
                order.append(name)
                time.sleep(0.01)
                turn.pass_on()
        seconds[name] = turn.seconds

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    turnstile.acquire()
    for place, thread in enumerate(threads, start=1):
        thread.start()
        wait_for(lambda place=place: len(turnstile._waiting) == place)
    began = time.perf_counter()
    turnstile.release()
    for thread in threads:
        thread.join()
    assert order == list("abc" * 6)
    assert min(seconds.values()) >= 0.06
    assert sum(seconds.values()) <= time.perf_counter() - began  # no second counts for two


@pytest.mark.slow
def test_lanes_of_a_race_advance_together(adapter):
    service = make_service(adapter, lanes=3)
    fields = [InpaintFields(method=method, steps=30, name="a.png") for method in ("rad", "ddnm", "replacement")]
    jobs = [service.submit(each, photo(), box()) for each in fields]
    wait_for(lambda: all(job.nfe for job in jobs))
    seen = 0
    while not any(job.is_over for job in jobs):
        calls, again = ([job.nfe for job in jobs] for _ in range(2))
        if calls == again:  # else they are of different moments
            assert max(calls) - min(calls) <= 8 * 3, calls  # a call fills up to eight windows
            seen += 1
        time.sleep(0.002)
    assert seen
    wait_for(lambda: all(job.is_over for job in jobs))
    assert [job.state for job in jobs] == ["done"] * 3
    assert [job.nfe for job in jobs] == [job.planned for job in jobs]
    service.queue.close()


def test_a_cancelled_job_makes_no_further_network_call_and_the_next_is_unchanged(adapter):
    service = make_service(adapter)
    fields = InpaintFields(method="repaint", steps=50, name="a.png")
    calls, denoise = [], service.fillers["tiny"].inpainter.model.denoiser

    def counted(conditions, *, adapter):
        denoiser = denoise(conditions, adapter=adapter)
        before = denoiser.denoise
        denoiser.denoise = lambda *args, **kwargs: calls.append(1) or before(*args, **kwargs)
        return denoiser

    service.fillers["tiny"].inpainter.model.denoiser = counted
    job = service.submit(fields, photo(), box())
    wait_for(lambda: job.nfe > 0)
    service.queue.cancel(job)
    made = len(calls)
    wait_for(lambda: service.queue.running == 0)
    assert len(calls) <= made + 1
    assert (job.state, job.files, job.work) == ("cancelled", None, None)
    results = []
    for _ in range(2):
        job = service.submit(InpaintFields(steps=3, name="a.png"), photo(), box())
        wait_for(lambda job=job: job.is_over)
        assert job.files is not None
        results.append(job.files.images)
    assert results[0] == results[1]
    service.queue.close()


def test_a_waiting_job_is_cancelled_at_once(queue):
    jobs, free = queue(), threading.Event()
    running, waiting = make_job(lambda job: free.wait(120) and Files()), make_job(lambda job: Files(), held=100)
    jobs.add(running)
    jobs.add(waiting)
    wait_for(lambda: running.state == "running")
    assert (jobs.position(waiting), jobs.bytes) == (0, 100)
    jobs.cancel(waiting)
    assert (waiting.state, jobs.position(waiting), jobs.bytes, jobs.waiting) == ("cancelled", None, 0, 0)
    free.set()
    wait_for(lambda: running.is_over)
    assert jobs.states()["cancelled"] == 1


def test_a_watched_job_without_a_reader_is_cancelled(queue, monkeypatch):
    monkeypatch.setattr(job_module, "ABANDONED", 0.2)
    jobs = queue()

    def work(job):
        for _ in range(2000):
            job.check()
            time.sleep(0.005)
        return Files()

    alone, read, unwatched = make_job(work, watched=True), make_job(work, watched=True), make_job(work)
    read.read(+1)
    assert not read.is_abandoned
    jobs.add(alone)
    wait_for(lambda: alone.is_over)
    assert alone.state == "cancelled"
    time.sleep(0.3)
    assert not read.is_abandoned
    assert not unwatched.is_abandoned
    read.read(-1)
    time.sleep(0.3)
    jobs.add(read)  # it is cancelled although it waits
    jobs.sweep()
    wait_for(lambda: read.is_over)
    assert read.state == "cancelled"


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (ValueError("cannot read /srv/models/secret/model.bin: broken"), "cannot read model.bin: broken"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory"),
        (RuntimeError("/srv/secret exploded"), "unexpected error (RuntimeError)"),
        (KeyError("x"), "unexpected error (KeyError)"),
    ],
)
def test_a_job_that_fails_says_why_and_the_next_one_runs(queue, error, part, capsys):
    jobs = queue()

    def fail(job):
        raise error

    failing, fine = make_job(fail), make_job(lambda job: Files([b"x"]))
    jobs.add(failing)
    jobs.add(fine)
    wait_for(lambda: fine.is_over)
    assert (failing.state, fine.state) == ("failed", "done")
    assert part in failing.error
    assert "secret" not in failing.error


def test_the_queue_has_a_limit(queue):
    jobs, free = queue(limit=2), threading.Event()
    jobs.add(first := make_job(lambda job: free.wait(120) and Files()))
    wait_for(lambda: first.state == "running")
    waiting = [make_job(lambda job: Files()) for _ in range(2)]
    for job in waiting:
        jobs.add(job)
    with pytest.raises(Full, match="2 jobs are waiting") as full:
        jobs.add(make_job(lambda job: Files()))
    assert full.value.seconds >= 1
    free.set()
    wait_for(lambda: waiting[1].is_over)
    jobs.add(make_job(lambda job: Files()))


def test_a_refused_job_removes_no_results(queue):
    jobs, free = queue(limit=1, most_bytes=250), threading.Event()
    jobs.add(done := make_job(lambda job: Files([bytes(100)])))
    wait_for(lambda: done.is_over)
    with pytest.raises(Full, match="memory"):
        jobs.add(make_job(lambda job: Files(), held=300))
    jobs.add(running := make_job(lambda job: free.wait(120) and Files()))
    wait_for(lambda: running.state == "running")
    jobs.add(make_job(lambda job: Files()))
    with pytest.raises(Full, match="limit"):
        jobs.add(make_job(lambda job: Files(), held=200))
    assert jobs.get(done.id) is done
    free.set()


def test_memory_is_bounded_and_the_oldest_results_go_first(queue):
    jobs = queue(most_bytes=250)
    done = []
    for _ in range(4):
        done.append(make_job(lambda job: Files([bytes(100)])))
        jobs.add(done[-1])
        wait_for(lambda: done[-1].is_over)
    wait_for(lambda: jobs.bytes <= 250)
    assert [jobs.get(job.id) is None for job in done] == [True, True, False, False]
    assert jobs.was_removed(done[0].id)
    assert not jobs.was_removed("other")
    free = threading.Event()
    jobs.add(blocking := make_job(lambda job: free.wait(120) and Files(), held=200))
    assert jobs.get(done[3].id) is None
    with pytest.raises(Full, match="memory"):
        jobs.add(make_job(lambda job: Files(), held=100))
    free.set()
    wait_for(lambda: blocking.is_over)


def test_a_cancelled_job_counts_until_its_run_is_over(queue):
    jobs, free = queue(most_bytes=250), threading.Event()
    jobs.add(cancelled := make_job(lambda job: free.wait(120) and Files(), held=200))
    wait_for(lambda: cancelled.state == "running")
    jobs.cancel(cancelled)
    assert (cancelled.is_over, jobs.bytes, jobs.running) == (True, 200, 1)
    for forgotten in (False, True):
        if forgotten:
            jobs.remove(cancelled)
        jobs.sweep()
        assert (jobs.get(cancelled.id) is None) == forgotten
        assert jobs.bytes == 200
        with pytest.raises(Full, match="memory"):
            jobs.add(make_job(lambda job: Files(), held=100))
    free.set()
    wait_for(lambda: jobs.running == 0)
    assert jobs.bytes == 0
    jobs.add(make_job(lambda job: Files(), held=100))


def test_old_results_are_removed(queue):
    jobs = queue(most_seconds=0.05)
    jobs.add(job := make_job(lambda job: Files([b"x"])))
    wait_for(lambda: job.is_over)
    time.sleep(0.1)
    jobs.sweep()
    assert jobs.get(job.id) is None


def test_closing_stops_running_and_waiting_jobs(queue):
    jobs = queue()

    def work(job):
        while True:
            job.check()
            time.sleep(0.005)

    running, waiting = make_job(work), make_job(work)
    jobs.add(running)
    jobs.add(waiting)
    wait_for(lambda: running.state == "running")
    jobs.close()
    jobs.join()
    assert [running.state, waiting.state, jobs.running] == ["cancelled", "cancelled", 0]
    with pytest.raises(Full, match="shutting down"):
        jobs.add(make_job(work))
    with pytest.raises(Cancelled):
        running.check()


def test_a_preview_that_was_drawn_during_a_cancel_is_dropped():
    job = make_job(lambda job: Files())
    job.show(b"before")
    assert (job.preview, job.previews) == (b"before", 1)
    job.cancel()
    job.show(b"after")
    assert (job.preview, job.previews, job.size) == (None, 1, 0)
