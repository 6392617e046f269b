//! What stands between client and registry, and spoils what passes.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::dns::{NameServer, Word};
use crate::support::fault_server::{FaultServer, HOST, Reply, Request, authority};
use crate::support::registry::TestRegistry;

/// What happens to every answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// 503.
    Unavailable,
    /// 403.
    Forbidden,
    /// The right answer, much later than anybody waits.
    Delay,
    /// The start of the right answer, and then silence.
    Stall,
    /// The right answer, a byte a second.
    Trickle,
    /// The start of the right answer, and then the end of the connection.
    Truncate,
    /// The connection's end at once.
    Reset,
    /// Some bytes are others.
    WrongBytes,
    /// The last bytes are missing, and nothing tells.
    WrongLength,
    /// Sends the client around.
    RedirectLoop,
    /// Little that becomes very much.
    GzipBomb,
    /// The connection is made, and no word of TLS is answered.
    TlsStall,
    /// The name server says that there is no such name.
    DnsDead,
    /// The name server says nothing.
    DnsStall,
}

/// All of them.
pub(crate) const FAULTS: [Fault; 14] = [
    Fault::Unavailable,
    Fault::Forbidden,
    Fault::Delay,
    Fault::Stall,
    Fault::Trickle,
    Fault::Truncate,
    Fault::Reset,
    Fault::WrongBytes,
    Fault::WrongLength,
    Fault::RedirectLoop,
    Fault::GzipBomb,
    Fault::TlsStall,
    Fault::DnsDead,
    Fault::DnsStall,
];

impl Fault {
    /// Whether it strikes whoever asks for the registry's address.
    pub(crate) fn is_of_names(self) -> bool {
        matches!(self, Self::DnsDead | Self::DnsStall)
    }
}

/// Longer than any deadline here.
const LATE: Duration = Duration::from_secs(12);

/// More than the client would ever keep.
static BOMB: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    for _ in 0..80 {
        packed.write_all(&vec![b' '; 1 << 20]).unwrap();
    }
    packed.finish().unwrap()
});

#[derive(Default)]
struct State {
    fault: Mutex<Option<Fault>>,
}

/// A proxy that speaks for a registry; stops when dropped.
pub(crate) struct Proxy {
    state: Arc<State>,
    http: FaultServer,
    front: Option<Front>,
    /// Who knows its address, if it goes by a name.
    pub(crate) names: Option<NameServer>,
    /// What its certificate is vouched for by, if it speaks TLS.
    pub(crate) authority: Option<String>,
}

impl Proxy {
    /// In front of `registry`, over plain HTTP.
    pub(crate) fn of(registry: &Arc<TestRegistry>) -> Self {
        let state = Arc::<State>::default();
        Self {
            http: FaultServer::start(handler(&state, registry)),
            state,
            front: None,
            names: None,
            authority: None,
        }
    }

    /// In front of `registry`, where `fault` can strike.
    pub(crate) fn for_fault(registry: &Arc<TestRegistry>, fault: Fault) -> Self {
        if fault != Fault::TlsStall && !fault.is_of_names() {
            return Self::of(registry);
        }
        let state = Arc::<State>::default();
        let (authority, config) = authority();
        let http = FaultServer::start_tls(config, handler(&state, registry));
        Self {
            front: Some(Front::start(&state, http.address())),
            names: fault.is_of_names().then(|| {
                let state = Arc::clone(&state);
                NameServer::start(move || match *state.fault.lock().unwrap() {
                    Some(Fault::DnsDead) => Word::Unknown,
                    Some(Fault::DnsStall) => Word::Silence,
                    _ => Word::Here,
                })
            }),
            http,
            state,
            authority: Some(authority),
        }
    }

    /// What clients are told.
    pub(crate) fn url(&self) -> String {
        match (&self.front, &self.names) {
            (Some(front), Some(_)) => format!("https://{HOST}:{}", front.address.port()),
            (Some(front), None) => format!("https://{}", front.address),
            (None, _) => self.http.url(),
        }
    }

    /// From now on this happens; `None` for nothing.
    pub(crate) fn set(&self, fault: Option<Fault>) {
        *self.state.fault.lock().unwrap() = fault;
    }

    /// How many requests have arrived.
    pub(crate) fn requests(&self) -> usize {
        self.http.count(|_| true)
    }

    /// How often somebody came to where the fault strikes, on the way to something whose path contains
    /// `text`: what comes before HTTP says nothing of that.
    pub(crate) fn met(&self, text: &str) -> usize {
        match (&self.names, &self.front) {
            (Some(names), _) => names.asked(),
            (None, Some(front)) => front.accepted.load(Ordering::SeqCst),
            (None, None) => self.http.count(|request| request.target.contains(text)),
        }
    }
}

fn handler(
    state: &Arc<State>,
    registry: &Arc<TestRegistry>,
) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    let (state, registry) = (Arc::clone(state), Arc::clone(registry));
    move |request| {
        let fault = *state.fault.lock().unwrap();
        match fault {
            Some(Fault::Unavailable) => return Reply::problem(503, "unavailable", "not now"),
            Some(Fault::Forbidden) => return Reply::problem(403, "forbidden", "not you"),
            Some(Fault::Reset) => return Reply::reset(),
            Some(Fault::RedirectLoop) => return Reply::redirect(&request.target),
            Some(Fault::GzipBomb) => {
                return Reply::bytes("application/json", BOMB.clone())
                    .header("content-encoding", "gzip");
            }
            Some(Fault::Delay) => std::thread::sleep(LATE),
            _ => {}
        }
        let Some(reply) = forward(request, &registry) else {
            return Reply::reset();
        };
        spoil(reply, fault)
    }
}

/// The registry's own answer, if it gives one.
fn forward(request: &Request, registry: &TestRegistry) -> Option<Reply> {
    let passed = ["accept", "authorization"];
    let headers: Vec<_> = request
        .headers
        .iter()
        .filter(|(name, _)| passed.contains(&name.as_str()))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let is_head = request.method == "HEAD";
    let answer = registry
        .ask(&request.method, &request.target, &headers)
        .ok()?;
    let mut reply = Reply::bytes(answer.header("content-type"), answer.body.clone());
    for (name, value) in &answer.headers {
        let of_the_connection = ["connection", "content-type", "date", "transfer-encoding"];
        if of_the_connection.contains(&name.as_str()) || name == "content-length" && !is_head {
            continue;
        }
        reply = reply.header(name, value);
    }
    Some(reply.with_status(answer.status))
}

fn spoil(reply: Reply, fault: Option<Fault>) -> Reply {
    match fault {
        Some(Fault::Stall) => {
            let half = reply.body().len() / 2;
            reply.stalled(half)
        }
        Some(Fault::Truncate) => {
            let half = reply.body().len() / 2;
            reply.truncated(half)
        }
        Some(Fault::Trickle) => reply.trickle(1, Duration::from_secs(1)),
        Some(Fault::WrongBytes) => reply.with_body(|body| {
            // In the middle, where JSON has its sense, and at the start, where it has its brace.
            let middle = body.len() / 2;
            for at in [0, middle] {
                if let Some(byte) = body.get_mut(at) {
                    *byte ^= 0x11;
                }
            }
        }),
        Some(Fault::WrongLength) => reply.with_body(|body| body.truncate(body.len() * 2 / 3)),
        _ => reply,
    }
}

/// Takes connections before TLS does.
struct Front {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    stopping: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Front {
    fn start(state: &Arc<State>, to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, stopping) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let accepting = std::thread::spawn({
            let state = Arc::clone(state);
            let (accepted, stopping) = (Arc::clone(&accepted), Arc::clone(&stopping));
            move || {
                let mut held = Vec::new();
                for stream in listener.incoming() {
                    if stopping.load(Ordering::SeqCst) {
                        return;
                    }
                    let Ok(stream) = stream else { continue };
                    accepted.fetch_add(1, Ordering::SeqCst);
                    if *state.fault.lock().unwrap() == Some(Fault::TlsStall) {
                        held.push(stream);
                    } else {
                        // Either may hang up first.
                        std::thread::spawn(move || drop(join(stream, to)));
                    }
                }
            }
        });
        Self {
            address,
            accepted,
            stopping,
            accepting: Some(accepting),
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// Passes bytes both ways until both sides have ended.
fn join(client: TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let server = TcpStream::connect(to)?;
    let (mut from, mut into) = (client.try_clone()?, server.try_clone()?);
    let there = std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut into);
        let _ = into.shutdown(Shutdown::Write);
    });
    let (mut from, mut into) = (server, client);
    let mut buffer = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if into.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = into.shutdown(Shutdown::Both);
    let _ = there.join();
    Ok(())
}
