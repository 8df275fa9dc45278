"""Work as Slurm jobs, by submitit: what comes in within a moment is one array, and lost jobs are sent again."""

import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

from bench.errors import UsageError
from bench.executors import How
from bench.executors.remote import attempt, pack
from bench.worker import Outcome, Place, Work
from solvers import did_you_mean

try:
    from submitit import AutoExecutor, Job
    from submitit.helpers import DelayedSubmission
except ImportError:
    raise UsageError("engine slurm needs the package submitit: pip install 'fewstep[slurm]'") from None

ARRAY = 1000  # jobs of an array, of which Slurm takes 1001 unless it is told otherwise
AT_A_TIME = 256  # jobs, unless workers are given
MINUTES = 60  # a job's, unless time is given; it comes back when they are over
TRIES = 4  # times that a job is sent, where it was lost
TIMEOUTS = 100  # times that a job comes back after its time was over: each leaves blocks behind
WORDS = ("partition", "account", "qos", "constraint", "gres", "mem", "nodelist", "exclude", "reservation", "comment")
NUMBERS = ("gpus_per_node", "cpus_per_task", "signal_delay_s")
SHARED = ("gpus_per_node", "cpus_per_task", "timeout_min")  # names that submitit has for all clusters


class JobLostError(RuntimeError):
    """Work whose job was lost, or refused, each time that it was sent."""


@dataclass(frozen=True)
class Cluster:
    """How often jobs are looked at, and how long a result may take to show on this machine's disk, in seconds."""

    pause: float
    grace: float


CLUSTERS = {"slurm": Cluster(2.0, 15.0), "local": Cluster(0.1, 0.0)}


@dataclass(frozen=True)
class Attempt:
    """What a job runs; when Slurm takes its machine away, it comes back and goes on behind the last block."""

    place: Place
    work: bytes
    threads: int | None

    def __call__(self) -> Outcome | Exception:
        """What is raised is a value, since submitit brings back the text alone."""
        try:
            return attempt(self.place, self.work, self.threads)
        except Exception as error:
            return error

    def checkpoint(self) -> DelayedSubmission:
        return DelayedSubmission(self)


@dataclass(eq=False)
class Sent:
    """Work that was taken, the job that does it, and how often it was sent."""

    task: Attempt
    alone: bool
    future: Future[Outcome]
    job: Job[Outcome | Exception] | None = None
    tries: int = 0
    ended: float | None = None  # when it was first seen to have ended


@dataclass
class Slurm:
    """The engine; one thread of it sends jobs and looks at them."""

    place: Place
    cluster: str
    slots: int
    parameters: Mapping[str, Any]
    piece: int = 20_000  # samples: a job costs seconds before its first sample
    _queue: SimpleQueue[Sent] = field(default_factory=SimpleQueue)
    _running: list[Sent] = field(default_factory=list)
    _closing: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def submit(self, work: Work, alone: bool = False) -> Future[Outcome]:
        """A job, `alone` with a node to itself."""
        sent = Sent(Attempt(self.place, pack(work), self.parameters.get("cpus_per_task")), alone, Future())
        self._queue.put(sent)
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="slurm", daemon=True)
            self._thread.start()
        return sent.future

    def close(self) -> None:
        """Cancel the jobs that have not ended."""
        self._closing.set()
        if self._thread:
            self._thread.join()
        for sent in self._running:
            if sent.job:
                sent.job.cancel(check=False)

    def _serve(self) -> None:
        while not self._closing.wait(CLUSTERS[self.cluster].pause):
            new = _all_of(self._queue)
            for alone in (False, True):
                group = [sent for sent in new if sent.alone == alone]
                for i in range(0, len(group), ARRAY):
                    self._send(group[i : i + ARRAY], alone)
            for sent in list(self._running):
                self._look(sent)

    def _send(self, group: Sequence[Sent], alone: bool) -> None:
        """As one array."""
        try:
            executor = self.executor(alone)
            with executor.batch():
                jobs = [executor.submit(sent.task) for sent in group]
        except Exception as error:  # of many kinds: what sbatch says, a disk that is full
            for sent in group:
                self._again(sent, f"sbatch: {error}")
            return
        for sent, job in zip(group, jobs, strict=True):
            sent.job, sent.ended = job, None
            self._running.append(sent)

    def executor(self, alone: bool) -> AutoExecutor:
        """What sends jobs with these parameters."""
        executor = AutoExecutor(self.place.folder / "slurm", self.cluster, slurm_max_num_timeout=TIMEOUTS)
        executor.update_parameters(
            **{name if name in SHARED else f"slurm_{name}": value for name, value in self.parameters.items()},
            name="fewstep",
            slurm_array_parallelism=self.slots,
            slurm_exclusive=alone or None,
        )
        return executor

    def _look(self, sent: Sent) -> None:
        """Whether a job has ended, and how; one without a result was lost."""
        assert sent.job
        result = sent.job.paths.result_pickle.exists()
        if not result and not sent.job.done():
            return
        sent.ended = sent.ended or monotonic()
        if not result and monotonic() - sent.ended < CLUSTERS[self.cluster].grace:
            return
        self._running.remove(sent)
        if not result:
            sent.job.cancel(check=False)  # else Slurm may send it again as well
            self._again(sent, f"job {sent.job.job_id} was lost ({sent.job.state}); its log: {sent.job.paths.stderr}")
            return
        try:
            found = sent.job.result()
        except Exception as error:
            found = error
        _settle(sent.future, found)

    def _again(self, sent: Sent, why: str) -> None:
        """Send once more, unless that was done often enough."""
        sent.tries += 1
        if sent.tries < TRIES:
            self._queue.put(sent)
        else:
            _settle(sent.future, JobLostError(f"sent {sent.tries} times: {why}"))


def start(how: How, place: Place) -> Slurm:
    """Raises UsageError and UnknownNameError; nothing is written or sent before there is work."""
    settings = dict(how.slurm)
    cluster = settings.pop("cluster", "slurm")
    if cluster not in CLUSTERS:
        raise did_you_mean("--slurm cluster", cluster, list(CLUSTERS))
    if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise UsageError("engine slurm: no sbatch and srun here: start it on a machine that can submit jobs")
    parameters = parameters_of(settings)
    if place.device.startswith("cuda") and "gres" not in parameters:
        parameters.setdefault("gpus_per_node", 1)
    if parameters.get("gpus_per_node") or parameters.get("gres"):
        place = replace(place, device="cuda")  # where jobs run, whatever this machine has
    place = replace(place, folder=place.folder.absolute())
    if "%" in str(place.folder):
        raise UsageError(f"--out {place.folder}: Slurm has meanings of its own for % in names: give another folder")
    return Slurm(place, cluster, how.workers or AT_A_TIME, parameters)


def parameters_of(settings: Mapping[str, str]) -> dict[str, Any]:
    """What submitit is told, of what people give; raises UsageError and UnknownNameError.

    A job is queued again by Slurm when its machine is taken away or breaks down.
    """
    found: dict[str, Any] = {"timeout_min": MINUTES, "additional_parameters": {"requeue": True}}
    for name, text in settings.items():
        if name == "time":
            found["timeout_min"] = _minutes(text)
        elif name == "reservation":
            found["additional_parameters"][name] = text
        elif name in NUMBERS:
            if not re.fullmatch(r"[0-9]{1,6}", text):
                raise UsageError(f"--slurm {name}={text}: give a whole number")
            found[name] = int(text)
        elif name in WORDS:
            if not text or not text.isprintable():
                raise UsageError(f"--slurm {name}={text!r}: give a word, as sbatch takes it")
            found[name] = text
        else:
            raise did_you_mean("--slurm key", name, ["cluster", "time", *NUMBERS, *WORDS])
    return found


def _minutes(text: str) -> int:
    """Of Slurm's times: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    match = re.fullmatch(r"(?:(\d{1,4})-)?(\d{1,6})(?::(\d{1,2}))?(?::(\d{1,2}))?", text)
    if not match:
        raise UsageError(f"--slurm time={text}: give minutes, or a time such as 4:00:00 or 1-12:00:00")
    days, *rest = match.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None or len(numbers) == 3:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    total = int(days or 0) * 1440 + hours * 60 + minutes + (seconds > 0)
    if not total:
        raise UsageError(f"--slurm time={text}: give a minute or more")
    return total


def _all_of(queue: SimpleQueue[Sent]) -> list[Sent]:
    found = []
    try:
        while True:
            found.append(queue.get_nowait())
    except Empty:
        return found


def _settle(future: Future[Outcome], found: Outcome | Exception) -> None:
    if isinstance(found, Exception):
        future.set_exception(found)
    else:
        future.set_result(found)
