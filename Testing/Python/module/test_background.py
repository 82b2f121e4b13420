"""Work beside the window, and that nothing of it stays in memory."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest


@pytest.fixture
def is_gone(slicer_host):
    """Whether nobody holds an object any more, once the event loop has run."""

    def look(reference: weakref.ref) -> bool:
        gc.collect()
        return reference() is None

    return lambda reference: slicer_host.app.wait_until(lambda: look(reference), 2)


class Images:
    """What a case weighs, in small."""

    def __init__(self) -> None:
        self.array = np.ones(1000)


def test_a_task_that_is_done_holds_neither_its_result_nor_what_it_worked_on(slicer_host, is_gone):
    from TwinSegSlicerLib.Background import BackgroundTask

    read, made, told = Images(), Images(), []
    references = [weakref.ref(read), weakref.ref(made)]
    sums = []
    task = BackgroundTask(
        lambda images=read, result=made: (result, images.array.sum())[0],
        lambda result: (told.append("done"), sums.append(result.array.sum())),
        told.append,
    )
    references.append(weakref.ref(task))
    del read, made, task
    assert slicer_host.app.wait_until(lambda: told)

    assert (told, sums) == (["done"], [1000])
    assert all(map(is_gone, references))


def test_a_task_that_is_kept_holds_no_result_either(slicer_host, is_gone):
    from TwinSegSlicerLib.Background import BackgroundTask

    done = []
    task = BackgroundTask(Images, lambda images: done.append(weakref.ref(images)), done.append)
    assert slicer_host.app.wait_until(lambda: done)

    assert is_gone(done[0])
    task.abandon()  # too late: nothing to be done, and no fault


def test_an_abandoned_task_tells_nobody_and_is_forgotten_at_its_end(slicer_host, is_gone):
    import qt

    from TwinSegSlicerLib.Background import BackgroundTask

    may_end, ended, told, images = threading.Event(), threading.Event(), [], Images()
    reference = weakref.ref(images)
    tasks = [BackgroundTask(lambda images=images: (may_end.wait(), images)[1], told.append, told.append)]
    task = weakref.ref(tasks[0])
    del images

    def abandon():
        tasks[0].abandon()
        tasks.pop().abandon(then=ended.set)

    qt.QTimer.singleShot(0, abandon)  # from Qt's event loop, as whatever is called in Slicer
    assert slicer_host.app.wait_until(lambda: not tasks)
    assert not ended.is_set()
    may_end.set()
    assert ended.wait(5)

    assert is_gone(task)
    assert is_gone(reference)
    assert told == []


def test_an_error_is_told_once(slicer_host, is_gone):
    from TwinSegSlicerLib.Background import BackgroundTask

    errors = []
    task = weakref.ref(BackgroundTask(lambda: 1 / 0, errors.append, errors.append))
    assert slicer_host.app.wait_until(lambda: errors)
    slicer_host.process_events()

    assert [type(error) for error in errors] == [ZeroDivisionError]
    errors.clear()
    assert is_gone(task)
