"""OpenTelemetry in this process: ours where the application has none, the application's own extended where it has one.

`begin` may be called at any time and any number of times. An application that sets its TracerProvider later, as most do,
gets its way: tracers that were handed out before follow to it, its exporters see every span, and ours are added to it.
At exit, on SIGTERM, at fork and in the children of multiprocessing what is queued is sent, within the exit budget.
Nothing in here may raise into the application.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider

from otel_lightning.instrumentation import endpoint, tokens
from otel_lightning.instrumentation.delivery import Delivery
from otel_lightning.instrumentation.enrich import Enrich
from otel_lightning.instrumentation.privacy import Privacy, without_captured_ids
from otel_lightning.instrumentation.settings import Settings

SCOPE = "otel_lightning.instrumentation"
ATTRIBUTES_NEEDED = 100_000  # a long chat has thousands; the SDK's 128 drop the oldest
FORK_BUDGET_S = 1.0
log = logging.getLogger("otel_lightning")


class Provider(TracerProvider):
    """Ours. Its tracers follow to the provider that the application sets later."""

    successor: TracerProvider | None = None
    root: trace.Span | None = None

    def get_tracer(self, *arguments: Any, **options: Any) -> trace.Tracer:
        """A tracer that asks at each span who is in charge."""
        return _Tracer(self, arguments, options)

    def own_tracer(self, *arguments: Any, **options: Any) -> trace.Tracer:
        """The SDK's."""
        return super().get_tracer(*arguments, **options)


class _Tracer(trace.Tracer):
    def __init__(self, home: Provider, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._home, self._arguments, self._options = home, arguments, options
        self._by: tuple[Any, trace.Tracer] | None = None

    @property
    def _now(self) -> trace.Tracer:
        charge = self._home.successor or self._home
        known = self._by
        if known is None or known[0] is not charge:
            make = charge.own_tracer if isinstance(charge, Provider) else charge.get_tracer
            known = self._by = (charge, make(*self._arguments, **self._options))
        return known[1]

    def _place(self, context: Any) -> Any:
        """The process's root where nothing else is active: threads and new event loops know of none."""
        root = self._home.root
        if context is None and root is not None and not trace.get_current_span().get_span_context().is_valid:
            return trace.set_span_in_context(root)
        return context

    def start_span(self, name: str, context: Any = None, *arguments: Any, **options: Any) -> trace.Span:
        """As the SDK's."""
        return self._now.start_span(name, self._place(context), *arguments, **options)

    def start_as_current_span(self, name: str, context: Any = None, *arguments: Any, **options: Any) -> Any:
        """As the SDK's."""
        return self._now.start_as_current_span(name, self._place(context), *arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now, name)


class _Shared(SpanProcessor):
    """One of our processors in a provider that may be shut down before the process ends: that flushes, no more."""

    def __init__(self, inner: Enrich | Delivery, budget_s: float, doubled: Callable[[], bool] = lambda: False) -> None:
        self.inner, self._budget_s = inner, budget_s
        self._doubled: Callable[[], bool] | bool = doubled

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        self.inner.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        if callable(self._doubled):  # asked when the first span ends: by then the application has its exporters
            self._doubled = self._doubled()
        if not self._doubled:
            self.inner.on_end(span)

    def shutdown(self) -> None:
        self.inner.force_flush(int(self._budget_s * 1000))

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self.inner.force_flush(timeout_millis)


class Telemetry:
    """What `begin` set up."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.privacy = Privacy(settings)
        self.enrich = Enrich(settings)
        self.delivery: Delivery | None = None
        self.provider: Provider | None = None
        self.meter_provider: Any = None
        self._metric_exporter: Any = None
        self._others: list[Any] = []  # processors of exporters that the environment names beside OTLP
        self.logger_provider: Any = None
        self.at_end: list[Callable[[float], None]] = []  # others that must flush, with the seconds they may take
        self._extended: weakref.WeakSet[Any] = weakref.WeakSet()
        self._finished = False
        if not _disabled("TRACES"):
            self.delivery = Delivery(lambda: endpoint.exporter("TRACES"), settings, self._prepare)

    def _prepare(self, span: ReadableSpan) -> ReadableSpan:
        if self.settings.tokens:
            span = without_captured_ids(span)
        if not self.privacy.active:
            return span
        return self.privacy.span(span, tokens.texts_of(span))

    def change(self, settings: Settings) -> None:
        """Other settings from now on; spans on their way are sent by them too."""
        self.settings = self.enrich.settings = settings
        self.privacy = Privacy(settings)
        if self.delivery is not None:
            self.delivery.use(settings)

    def extend(self, provider: Any) -> None:
        """Add our processors to a provider, once, and raise its attribute limit."""
        if provider in self._extended:
            return
        if not hasattr(provider, "add_span_processor"):
            log.warning("the TracerProvider %s takes no span processors: nothing is captured", type(provider).__name__)
            return
        self._extended.add(provider)
        limits = getattr(provider, "_span_limits", None)
        for name in ("max_span_attributes", "max_attributes"):
            current = getattr(limits, name, None)
            if isinstance(current, int) and current < ATTRIBUTES_NEEDED:
                setattr(limits, name, ATTRIBUTES_NEEDED)
        budget_s = self.settings.exit_budget_s
        provider.add_span_processor(_Shared(self.enrich, budget_s))
        if self.delivery is not None:
            # Where its own exporter goes to the same collector, once is enough; unless something must be masked.
            doubled = lambda: not isinstance(provider, Provider) and not self.privacy.active and _exports_to(provider)  # noqa: E731
            provider.add_span_processor(_Shared(self.delivery, budget_s, doubled))

    def succeed(self, provider: Any) -> None:
        """The application has set its own provider: it is the one from now on."""
        self.extend(provider)
        if self.provider is not None and hasattr(provider, "add_span_processor"):
            self.provider.successor = provider

    def set_up(self) -> None:
        """Providers for what the application has not provided itself."""
        current = getattr(trace.get_tracer_provider, "__wrapped__", trace.get_tracer_provider)()
        resource = _resource()
        self._set_up_metrics(resource)
        if isinstance(current, trace.ProxyTracerProvider):
            options: dict[str, Any] = {"resource": resource, "shutdown_on_exit": False}
            try:
                provider = Provider(**options, meter_provider=self.meter_provider)
            except TypeError:  # SDKs before it had metrics of its own
                provider = Provider(**options)
            self.provider = provider
            self.extend(provider)
            for other in _other_exporters("TRACES", "opentelemetry_traces_exporter"):
                from opentelemetry.sdk.trace.export import BatchSpanProcessor

                processor = BatchSpanProcessor(other)
                provider.add_span_processor(processor)
                self._others.append(processor)
            set_quietly(trace, provider)
        else:
            self.extend(current)
        self._set_up_logs(resource)
        if self.settings.process_root:
            self._begin_root()

    def _set_up_metrics(self, resource: Resource) -> None:
        from opentelemetry import metrics

        if _disabled("METRICS"):
            return
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        self._metric_exporter = _metric_exporter()
        self.meter_provider = MeterProvider(
            [PeriodicExportingMetricReader(self._metric_exporter)], resource=resource, shutdown_on_exit=False
        )
        if not isinstance(metrics.get_meter_provider(), MeterProvider):
            metrics.set_meter_provider(self.meter_provider)
            _give_way("opentelemetry.metrics._internal", "_METER_PROVIDER", "_set_meter_provider", self.meter_provider)

        def dropped(_: Any) -> Any:
            counts = dict(self.delivery.dropped) if self.delivery else {}
            return [metrics.Observation(count, {"reason": reason}) for reason, count in counts.items()]

        self.meter_provider.get_meter(SCOPE).create_observable_counter(
            "lightning.spans.dropped", [dropped], "{span}", "Spans that ended and will never arrive"
        )

    def _set_up_logs(self, resource: Resource) -> None:
        from opentelemetry import _logs

        if _disabled("LOGS"):
            return
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

        from otel_lightning.instrumentation.records import RecordExporter

        processor = BatchLogRecordProcessor(
            RecordExporter(lambda: endpoint.exporter("LOGS"), lambda: self.privacy), schedule_delay_millis=200
        )
        current: Any = _logs.get_logger_provider()
        if hasattr(current, "add_log_record_processor"):
            current.add_log_record_processor(processor)
            return
        self.logger_provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
        self.logger_provider.add_log_record_processor(processor)
        _logs.set_logger_provider(self.logger_provider)
        _give_way(
            "opentelemetry._logs._internal",
            "_LOGGER_PROVIDER",
            "_set_logger_provider",
            self.logger_provider,
            lambda theirs: theirs.add_log_record_processor(processor),
        )

    def _begin_root(self) -> None:
        script = sys.argv[0] if getattr(sys, "argv", None) else ""
        name = os.path.basename(script) or "process"
        attributes = {"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": name}
        if self.settings.rollout_id:
            attributes["lightning.rollout.id"] = self.settings.rollout_id
        tracer = trace.get_tracer(SCOPE)
        root = tracer.start_span(
            name, context=context_api.Context(), attributes=attributes, start_time=self.settings.began_unix_nano
        )
        self.root = root
        if self.provider is not None:
            self.provider.root = root
        else:
            context_api.attach(trace.set_span_in_context(root))
        previous = sys.excepthook

        def hook(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
            if issubclass(kind, Exception):
                root.set_status(trace.StatusCode.ERROR, kind.__name__)
            previous(kind, error, traceback)

        sys.excepthook = hook

    root: trace.Span | None = None

    def finish(self) -> None:
        """End the root, send what is left within the budget, say what did not arrive. Safe to call twice."""
        if self._finished:
            return
        self._finished = True
        deadline = time.monotonic() + self.settings.exit_budget_s
        if self.root is not None:
            self.root.end()
        _within(deadline, [lambda left, p=processor: p.shutdown() for processor in self._others])
        there = endpoint.reachable(self.settings.endpoint)
        if self.delivery is not None:
            self.delivery.finish(deadline - time.monotonic() if there else 0.0)
        if there:
            _within(deadline, [*self.at_end, self._end_logs, self._end_metrics])
        self._report()

    def _end_logs(self, seconds: float) -> None:
        if self.logger_provider is not None:
            self.logger_provider.shutdown()

    def _end_metrics(self, seconds: float) -> None:
        if self.meter_provider is not None:
            self._metric_exporter.make()  # it measures itself, which a provider that shuts down does not let it
            self.meter_provider.shutdown()

    def _report(self) -> None:
        if self.delivery is not None and self.delivery.lost:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.delivery.dropped.items()))
            log.warning(
                "otel-lightning: %d of %d spans did not reach %s (%s); 'lightning-instrument doctor' says why",
                self.delivery.lost,
                self.delivery.ended,
                self.settings.endpoint,
                reasons,
            )
        if self.privacy.withheld:
            log.warning(
                "otel-lightning: a masking hook failed; the content of %d items was withheld", self.privacy.withheld
            )

        rewards = sys.modules.get("otel_lightning.instrumentation.rewards")
        if rewards is not None and (lost := rewards.unsent()):
            log.warning("otel-lightning: %d rewards were not taken by %s", lost, self.settings.endpoint)

    def before_fork(self) -> None:
        """What the parent has queued leaves before a child copies it."""
        if self.delivery is not None and self.delivery.ended > self.delivery.delivered + self.delivery.lost:
            self.delivery.flush(min(FORK_BUDGET_S, self.settings.exit_budget_s))

    def after_fork(self) -> None:
        """The child has its own end."""
        self._finished = False
        self.privacy = Privacy(self.settings)
        util = sys.modules.get("multiprocessing.util")
        if util is not None:  # its children leave by os._exit and run no atexit; this is what they run instead
            util.register_after_fork(self, lambda telemetry: util.Finalize(None, telemetry.finish, exitpriority=-1))


_lock = threading.RLock()
_telemetry: Telemetry | None = None


def telemetry() -> Telemetry | None:
    """What is set up in this process, if anything."""
    return _telemetry


def begin(settings: Settings) -> Telemetry | None:
    """Set up, once; None where OTEL_SDK_DISABLED says so."""
    global _telemetry
    with _lock:
        if _telemetry is not None:
            return _telemetry
        if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return None
        made = _telemetry = Telemetry(settings)
        made.set_up()
        atexit.register(made.finish)
        _on_sigterm(made)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=made.before_fork, after_in_child=made.after_fork)
        return made


def _on_sigterm(made: Telemetry) -> None:
    """Only where the application leaves SIGTERM to the system, which would end it without a flush."""
    if threading.current_thread() is not threading.main_thread():
        return
    try:
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return

        def end(number: int, frame: Any) -> None:
            # In a thread: the interrupted code may hold a lock that finishing needs.
            _within(time.monotonic() + made.settings.exit_budget_s, [lambda left: made.finish()])
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGTERM, end)
    except (ValueError, OSError):
        pass


def _within(deadline: float, jobs: Sequence[Callable[[float], None]]) -> None:
    threads = []
    for job in jobs:
        thread = threading.Thread(target=_silent, args=(job, deadline), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # an interpreter that is too far gone for threads
            _silent(job, deadline)
            continue
        threads.append(thread)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _silent(job: Callable[[float], None], deadline: float) -> None:
    endpoint.quiet.on = True
    try:
        job(max(0.0, deadline - time.monotonic()))
    except Exception:
        log.debug("at exit", exc_info=True)


def _give_way(
    module_name: str, variable: str, setter: str, ours: Any, then: Callable[[Any], None] = lambda theirs: None
) -> None:
    """Let the application replace our global provider with its own, as if ours had never been there."""
    module = sys.modules.get(module_name)
    original = getattr(module, setter, None)
    if original is None or not hasattr(module, variable):
        return

    def set_provider(theirs: Any, *arguments: Any, **options: Any) -> None:
        if getattr(module, variable) is ours and theirs is not ours:
            setattr(module, variable, theirs)
            try:
                then(theirs)
            except Exception:
                log.debug("extending %s", theirs, exc_info=True)
            return
        original(theirs, *arguments, **options)

    setattr(module, setter, set_provider)


def _resource() -> Resource:
    resource = Resource.create()
    if not resource.attributes.get("service.instance.id"):
        resource = resource.merge(Resource({"service.instance.id": str(uuid.uuid4())}))
    return resource


def _disabled(signal_name: str) -> bool:
    names = [n.strip() for n in os.environ.get(f"OTEL_{signal_name}_EXPORTER", "otlp").split(",")]
    return not any(name.startswith("otlp") for name in names)


def _other_exporters(signal_name: str, group: str) -> list[Any]:
    """Exporters that the environment names besides OTLP, such as console."""
    from importlib.metadata import entry_points

    names = [n.strip() for n in os.environ.get(f"OTEL_{signal_name}_EXPORTER", "").split(",")]
    found = []
    for name in names:
        if name and name != "none" and not name.startswith("otlp"):
            for entry_point in entry_points(group=group, name=name):
                try:
                    found.append(entry_point.load()())
                except Exception as error:
                    log.warning("the exporter '%s' cannot be made: %s", name, error)
                break
    return found


def _exports_to(provider: Any) -> bool:
    """Whether one of the provider's own exporters sends OTLP where ours would."""
    ours = endpoint.host_and_port(endpoint.endpoint_of("TRACES", "http://127.0.0.1:4318"))
    active = getattr(provider, "_active_span_processor", None)
    for processor in getattr(active, "_span_processors", ()):
        batch = getattr(processor, "_batch_processor", None)
        exporter = getattr(processor, "span_exporter", None) or getattr(batch, "_exporter", None)
        where = getattr(exporter, "_endpoint", None)
        if isinstance(where, str) and _same_host(endpoint.host_and_port(where), ours):
            return True
    return False


def _same_host(a: tuple[str, int], b: tuple[str, int]) -> bool:
    loopback = ("localhost", "127.0.0.1", "::1")
    return a[1] == b[1] and (a[0] == b[0] or (a[0] in loopback and b[0] in loopback))


def set_quietly(module: Any, provider: Any) -> None:
    """Set our global provider through the original function."""
    function = module.set_tracer_provider
    getattr(function, "__wrapped__", function)(provider)


def _metric_exporter() -> Any:
    from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult

    class Exporter(MetricExporter):
        """Made when it first sends; fails in silence."""

        def __init__(self) -> None:
            preference = os.environ.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE")
            made = endpoint.exporter("METRICS") if preference else None
            super().__init__(preferred_temporality=getattr(made, "_preferred_temporality", {}))
            self._inner: Any = None

        def make(self) -> None:
            if self._inner is None:
                self._inner = endpoint.exporter("METRICS")

        def export(self, metrics_data: Any, timeout_millis: float = 10_000, **options: Any) -> Any:
            try:
                self.make()
                return self._inner.export(metrics_data, timeout_millis=timeout_millis, **options)
            except Exception:
                return MetricExportResult.FAILURE

        def force_flush(self, timeout_millis: float = 10_000) -> bool:
            return True

        def shutdown(self, timeout_millis: float = 30_000, **options: Any) -> None:
            if self._inner is not None:
                self._inner.shutdown()

    return Exporter()
