//! An HTTP server that does what a test tells it to, wrong things above all.
//!
//! It speaks just enough HTTP/1.1, on threads of its own and one connection a request, so that it
//! can break the protocol at any byte. What it was asked is recorded before it answers.

#![allow(dead_code, unreachable_pub)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// What was asked.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// Path and query, as they were sent.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The key of a `Bearer` authorization.
    pub fn key(&self) -> Option<&str> {
        self.header("authorization")?.strip_prefix("Bearer ")
    }
}

#[derive(Debug, Clone)]
enum Manner {
    /// As HTTP says.
    Proper,
    /// Announces the whole body, sends only so many bytes of it.
    Truncated(usize),
    /// Announces the whole body, sends only so many bytes of it and then nothing, until the client
    /// hangs up.
    Stall(usize),
    /// Sends the body in pieces of this many bytes, with this pause before each.
    Trickle(usize, Duration),
    /// The body, chunked, again and again, until the client hangs up.
    Endless,
    /// Says nothing until the client hangs up.
    Hang,
    /// Cuts the connection without a word.
    Reset,
    /// These bytes instead of HTTP.
    Raw(Vec<u8>),
}

/// What to answer.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    manner: Manner,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            manner: Manner::Proper,
        }
    }

    pub fn bytes(media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let mut reply = Self::status(200).header("content-type", media_type);
        reply.body = body.into();
        reply
    }

    pub fn json(value: &serde_json::Value) -> Self {
        Self::bytes("application/json", value.to_string())
    }

    /// Problem details, as the registry sends them.
    pub fn problem(status: u16, slug: &str, detail: &str) -> Self {
        let kind = format!("https://docs.musher.dev/errors/{slug}");
        let body = serde_json::json!({"type": kind, "title": slug, "status": status,
            "detail": detail});
        let mut reply = Self::bytes("application/problem+json", body.to_string());
        reply.status = status;
        reply
    }

    pub fn redirect(location: &str) -> Self {
        Self::status(302).header("location", location)
    }

    pub fn hang() -> Self {
        Self::status(200).manner(Manner::Hang)
    }

    pub fn reset() -> Self {
        Self::status(200).manner(Manner::Reset)
    }

    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::status(200).manner(Manner::Raw(bytes.into()))
    }

    /// `body` over and over, without an announced length.
    pub fn endless(body: impl Into<Vec<u8>>) -> Self {
        Self::bytes("application/json", body).manner(Manner::Endless)
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Announces the whole body, but sends only its first `sent` bytes.
    pub fn truncated(self, sent: usize) -> Self {
        self.manner(Manner::Truncated(sent))
    }

    /// Announces the whole body, sends its first `sent` bytes, and leaves the client waiting.
    pub fn stalled(self, sent: usize) -> Self {
        self.manner(Manner::Stall(sent))
    }

    /// Sends `piece` bytes at a time, each after a pause.
    pub fn trickle(self, piece: usize, pause: Duration) -> Self {
        self.manner(Manner::Trickle(piece, pause))
    }

    /// The body that is announced.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Changes the body at will.
    pub fn with_body(mut self, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        change(&mut self.body);
        self
    }

    fn manner(mut self, manner: Manner) -> Self {
        self.manner = manner;
        self
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

#[derive(Default)]
struct Shared {
    requests: Mutex<Vec<Request>>,
    arrived: Condvar,
    /// Those that are open, by number.
    connections: Mutex<HashMap<usize, TcpStream>>,
    stopping: AtomicBool,
}

/// The server; stops when dropped, and hangs up on everybody.
pub struct FaultServer {
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl FaultServer {
    /// Answers every request as `handler` says; it may block.
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::launch(None, Arc::new(handler))
    }

    /// The same over TLS.
    pub fn start_tls(
        config: Arc<rustls::ServerConfig>,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::launch(Some(config), Arc::new(handler))
    }

    /// Answers these targets (path and query, exactly), and 404 to all others.
    pub fn routes<T: Into<String>>(routes: impl IntoIterator<Item = (T, Reply)>) -> Self {
        let routes: HashMap<String, Reply> = routes
            .into_iter()
            .map(|(target, reply)| (target.into(), reply))
            .collect();
        Self::start(move |request| match routes.get(&request.target) {
            Some(reply) => reply.clone(),
            None => Reply::problem(404, "not-found", "no such thing"),
        })
    }

    /// Answers the requests with these replies in turn, then with the last one for ever.
    pub fn script(replies: impl IntoIterator<Item = Reply>) -> Self {
        let replies: Vec<Reply> = replies.into_iter().collect();
        let next = Mutex::new(0);
        Self::start(move |_| {
            let mut next = next.lock().unwrap();
            let reply = replies[(*next).min(replies.len() - 1)].clone();
            *next += 1;
            reply
        })
    }

    fn launch(tls: Option<Arc<rustls::ServerConfig>>, handler: Arc<Handler>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let scheme = if tls.is_some() { "https" } else { "http" };
        let accepting = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for (number, stream) in listener.incoming().enumerate() {
                    let Ok(stream) = stream else { continue };
                    if shared.stopping.load(Ordering::SeqCst) {
                        break;
                    }
                    shared
                        .connections
                        .lock()
                        .unwrap()
                        .insert(number, stream.try_clone().unwrap());
                    let (shared, handler, tls) =
                        (Arc::clone(&shared), Arc::clone(&handler), tls.clone());
                    std::thread::spawn(move || {
                        // A client that hangs up is part of most tests.
                        let _ = match tls {
                            None => serve(&stream, &stream, &shared, &*handler),
                            Some(config) => {
                                let session = rustls::ServerConnection::new(config).unwrap();
                                let secure =
                                    rustls::StreamOwned::new(session, stream.try_clone().unwrap());
                                serve(secure, &stream, &shared, &*handler)
                            }
                        };
                        let _ = stream.shutdown(Shutdown::Both);
                        shared.connections.lock().unwrap().remove(&number);
                    });
                }
            }
        });
        Self {
            address,
            scheme,
            shared,
            accepting: Some(accepting),
        }
    }

    /// The server's URL, by address.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The targets of all requests so far.
    pub fn targets(&self) -> Vec<String> {
        self.requests().into_iter().map(|r| r.target).collect()
    }

    /// How many of the requests so far are as `wanted` says.
    pub fn count(&self, wanted: impl Fn(&Request) -> bool) -> usize {
        let requests = self.shared.requests.lock().unwrap();
        requests.iter().filter(|request| wanted(request)).count()
    }

    /// Waits until at least `count` requests have arrived, in a thread of its own: whoever asks may
    /// be a task of this one.
    pub async fn wait_for(&self, count: usize) {
        let shared = Arc::clone(&self.shared);
        let waiting = tokio::task::spawn_blocking(move || {
            let requests = shared.requests.lock().unwrap();
            let (requests, waited) = shared
                .arrived
                .wait_timeout_while(requests, Duration::from_secs(60), |r| r.len() < count)
                .unwrap();
            assert!(!waited.timed_out(), "only {} requests came", requests.len());
        });
        waiting.await.unwrap();
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        for (_, connection) in self.shared.connections.lock().unwrap().drain() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// A host that a test may give the address of loopback.
pub const HOST: &str = "registry.test";

/// A certificate authority of its own, in PEM, and a server on loopback that it vouches for, under
/// the name of [`HOST`], too.
pub fn authority() -> (String, Arc<rustls::ServerConfig>) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = ["localhost", "127.0.0.1", HOST].map(str::to_owned);
    let certificate = CertificateParams::new(names.to_vec())
        .unwrap()
        .signed_by(&key, &ca)
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (ca.pem(), Arc::new(config))
}

fn serve(
    stream: impl Read + Write,
    socket: &TcpStream,
    shared: &Shared,
    handler: &Handler,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let Some(request) = read_request(&mut stream)? else {
        return Ok(());
    };
    shared.requests.lock().unwrap().push(request.clone());
    shared.arrived.notify_all();
    let reply = handler(&request);
    write_reply(stream.get_mut(), socket, &reply)?;
    Ok(())
}

fn read_request(stream: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => {
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
            None => break,
        }
    }
    Ok(Some(Request {
        method,
        target,
        headers,
    }))
}

fn write_reply(
    stream: &mut (impl Read + Write),
    socket: &TcpStream,
    reply: &Reply,
) -> std::io::Result<()> {
    match &reply.manner {
        Manner::Hang => {
            let mut byte = [0; 512];
            while stream.read(&mut byte)? > 0 {}
            return Ok(());
        }
        Manner::Reset => {
            let at_once = Some(Duration::ZERO);
            rustix::net::sockopt::set_socket_linger(socket, at_once)?;
            return Ok(());
        }
        Manner::Raw(bytes) => {
            stream.write_all(bytes)?;
            return stream.flush();
        }
        _ => {}
    }
    let mut head = format!(
        "HTTP/1.1 {} Scripted\r\nconnection: close\r\n",
        reply.status
    );
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let endless = matches!(reply.manner, Manner::Endless);
    if endless {
        head += "transfer-encoding: chunked\r\n";
    } else if !reply
        .headers
        .iter()
        .any(|(name, _)| name == "content-length")
    {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    stream.flush()?;
    match &reply.manner {
        Manner::Truncated(sent) => stream.write_all(&reply.body[..*sent])?,
        Manner::Stall(sent) => {
            stream.write_all(&reply.body[..*sent])?;
            stream.flush()?;
            let mut byte = [0; 512];
            while stream.read(&mut byte)? > 0 {}
            return Ok(());
        }
        Manner::Trickle(piece, pause) => {
            for piece in reply.body.chunks(*piece) {
                std::thread::sleep(*pause);
                stream.write_all(piece)?;
                stream.flush()?;
            }
        }
        Manner::Endless => loop {
            write!(stream, "{:x}\r\n", reply.body.len())?;
            stream.write_all(&reply.body)?;
            stream.write_all(b"\r\n")?;
        },
        _ => stream.write_all(&reply.body)?,
    }
    stream.flush()
}
