//! Numbers for monitoring: Prometheus text on a loopback port or a Unix socket.
//!
//! | request | answer |
//! |---|---|
//! | `GET /metrics` | all numbers, in OpenMetrics text |
//! | `GET /healthz` | 200 as long as the daemon runs |
//! | `GET /readyz` | 200 if the mount answers, 503 if it does not, or nobody new can reach it |
//!
//! Whoever can reach the address can read names of bundles from nowhere in it: labels are kinds of
//! requests, results and the URLs of sources, never paths. The port is on loopback only.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Mutex;

use super::process::Process;
use super::{Control, status};
use crate::config::value::MetricsAddress;
use crate::metrics::Counter;
use crate::metrics::requests::{Operation, Outcome, TIME_BOUNDS};
use crate::mount::touch::{self, Liveness};
use crate::source::Source as _;
use crate::source::breaker::BreakerState;

/// How long the mount may take to answer before it counts as not ready.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long an answer about readiness is repeated: each costs a process.
const READY_FOR: Duration = Duration::from_secs(2);

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, super::OwnFile),
}

/// An address that is listened on; nothing is answered before [`Endpoint::serve`].
pub struct Endpoint(Listener);

impl Endpoint {
    /// Listens on `address`.
    ///
    /// # Errors
    ///
    /// When it is taken or cannot be had; a socket that nobody listens on any more is replaced.
    pub async fn bind(address: &MetricsAddress) -> io::Result<Self> {
        let listener = match address {
            MetricsAddress::Tcp(address) => Listener::Tcp(TcpListener::bind(address).await?),
            MetricsAddress::Unix(path) => {
                let is_socket = std::fs::symlink_metadata(path)
                    .is_ok_and(|found| found.file_type().is_socket());
                if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
                    std::fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                let file = super::OwnFile(path.clone());
                let mode = std::fs::Permissions::from_mode(0o600);
                std::fs::set_permissions(path, mode)?;
                Listener::Unix(listener, file)
            }
        };
        Ok(Self(listener))
    }

    /// Where it is listened on; with the port that the kernel chose, if it did.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.0 {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(..) => None,
        }
    }

    /// Answers until the future is dropped.
    pub async fn serve(self, control: Arc<Control>) {
        let mut registry = Registry::with_prefix("musherfs");
        registry.register_collector(Box::new(Numbers(Arc::clone(&control))));
        let scrape = Arc::new(Scrape {
            registry,
            control,
            ready: Mutex::default(),
        });
        let router = Router::new()
            .route("/metrics", get(numbers))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .with_state(scrape);
        let served: io::Result<()> = match self.0 {
            Listener::Tcp(listener) => axum::serve(listener, router).await,
            Listener::Unix(listener, _file) => axum::serve(listener, router).await,
        };
        if let Err(error) = served {
            tracing::warn!(%error, "the numbers are not served any more");
        }
    }
}

struct Scrape {
    registry: Registry,
    control: Arc<Control>,
    ready: Mutex<Option<(Instant, Liveness)>>,
}

async fn numbers(State(scrape): State<Arc<Scrape>>) -> Response {
    let mut body = String::new();
    match text::encode(&mut body, &scrape.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(CONTENT_TYPE, kind)], body).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Asks the mount from another process: a thread of this one would wait for itself.
async fn ready(State(scrape): State<Arc<Scrape>>) -> Response {
    // What is at the path now is not the mount.
    if scrape.control.state() == status::State::Detached {
        return (StatusCode::SERVICE_UNAVAILABLE, "the mount is detached\n").into_response();
    }
    let mut last = scrape.ready.lock().await;
    let liveness = match &*last {
        Some((at, liveness)) if at.elapsed() < READY_FOR => *liveness,
        _ => {
            let dir = scrape.control.mountpoint.clone();
            let asking = tokio::task::spawn_blocking(move || {
                touch::ask_elsewhere(touch::this_program(), &dir, PATIENCE)
            });
            let liveness = asking.await.unwrap_or(Liveness::Stuck);
            *last = Some((Instant::now(), liveness));
            liveness
        }
    };
    match liveness {
        Liveness::Alive => (StatusCode::OK, "ready\n"),
        Liveness::Dead => (StatusCode::SERVICE_UNAVAILABLE, "the mount is dead\n"),
        Liveness::Stuck => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the mount does not answer\n",
        ),
    }
    .into_response()
}

/// Reads the counters whenever somebody asks.
struct Numbers(Arc<Control>);

impl fmt::Debug for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Numbers")
    }
}

type Encoded = Result<(), fmt::Error>;

fn family<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &str,
    unit: Option<&'e Unit>,
    kind: MetricType,
) -> Result<MetricEncoder<'e>, fmt::Error> {
    encoder.encode_descriptor(name, help, unit, kind)
}

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        let encoder = &mut encoder;
        self.requests(encoder)?;
        self.counters(encoder)?;
        self.sources(encoder)?;
        self.gauges(encoder)
    }
}

impl Numbers {
    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let requests = self.0.fs.metrics().requests();
        let help = "Answered requests by what was asked for and what the reader saw";
        let mut requests_family = family(encoder, "requests", help, None, MetricType::Counter)?;
        for &operation in Operation::ALL {
            for &outcome in Outcome::ALL {
                let labels = [("op", operation.label()), ("result", outcome.label())];
                requests_family
                    .encode_family(&labels)?
                    .encode_counter::<[(&str, &str); 0], u64, f64>(
                        &requests.count(operation, outcome),
                        None,
                    )?;
            }
        }
        let help = "How long requests took, from the kernel's question to the answer";
        let kind = MetricType::Histogram;
        let mut times = family(
            encoder,
            "request_duration",
            help,
            Some(&Unit::Seconds),
            kind,
        )?;
        for &operation in Operation::ALL {
            let seen = requests.times(operation);
            let buckets: Vec<(f64, u64)> = bounds().zip(seen.classes.iter().copied()).collect();
            times
                .encode_family(&[("op", operation.label())])?
                .encode_histogram::<[(&str, &str); 0]>(
                    seen.total.as_secs_f64(),
                    seen.classes.iter().sum(),
                    &buckets,
                    None,
                )?;
        }
        Ok(())
    }

    fn counters(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let metrics = self.0.fs.metrics();
        let reads = [
            ("warm", metrics.get(Counter::ReadWarm)),
            ("cold", metrics.get(Counter::ReadCold)),
        ];
        let help = "Reads that reached the daemon, by whether they had to wait";
        let mut by_temperature = family(encoder, "reads", help, None, MetricType::Counter)?;
        for (temperature, count) in reads {
            by_temperature
                .encode_family(&[("cache", temperature)])?
                .encode_counter::<[(&str, &str); 0], u64, f64>(&count, None)?;
        }
        for &counter in Counter::ALL {
            let help = format!("The counter {} of `musherfs status --json`", counter.name());
            family(encoder, counter.name(), &help, None, MetricType::Counter)?
                .encode_counter::<[(&str, &str); 0], u64, f64>(&metrics.get(counter), None)?;
        }
        Ok(())
    }

    fn sources(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let help = "Whether a source is asked: 1 in exactly one of its states";
        let mut states = family(encoder, "source_state", help, None, MetricType::Gauge)?;
        for source in &self.0.sources.all() {
            let now = match source.state() {
                BreakerState::Closed => "up",
                BreakerState::Open { .. } => "down",
                BreakerState::Probing => "probing",
            };
            for state in ["up", "down", "probing"] {
                states
                    .encode_family(&[("source", source.name()), ("state", state)])?
                    .encode_gauge(&i64::from(state == now))?;
            }
        }
        Ok(())
    }

    fn gauges(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let usage = self.0.fs.usage();
        let waiting = u64::try_from(self.0.fs.in_flight().len()).unwrap_or(u64::MAX);
        let age = jiff::Timestamp::now().duration_since(self.0.since);
        let process = Process::current();
        let numbers = [
            ("cache_bytes", "Bytes of content in the cache", usage.bytes),
            ("cache_blobs", "Blobs in the cache", usage.files),
            (
                "requests_waiting",
                "Requests that wait for a source",
                waiting,
            ),
            (
                "uptime_seconds",
                "Seconds since the mount was made",
                u64::try_from(age.as_secs()).unwrap_or(0),
            ),
            (
                "resident_bytes",
                "Bytes that the daemon has in memory",
                process.resident_bytes,
            ),
            (
                "descriptors",
                "Descriptors that the daemon has open",
                process.descriptors,
            ),
            ("threads", "Threads of the daemon", process.threads),
            (
                "tasks",
                "Tasks of the daemon that wait or run",
                process.tasks,
            ),
        ];
        for (name, help, value) in numbers {
            family(encoder, name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        family(encoder, "build", "The program", None, MetricType::Info)?.encode_info(&labels)
    }
}

/// Upper bounds in seconds, and the last one beyond all.
#[allow(clippy::cast_precision_loss)] // Microseconds of a minute need 26 bits.
fn bounds() -> impl Iterator<Item = f64> {
    TIME_BOUNDS
        .iter()
        .map(|micros| *micros as f64 / 1e6)
        .chain([f64::INFINITY])
}
