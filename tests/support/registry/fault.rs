//! What goes wrong on demand: which requests are disturbed, and how.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::extract::connect_info::Connected;
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::{RouteKind, Seen};

/// Opens once, for everybody who waits and will wait. Clones are the same gate.
#[derive(Debug, Clone)]
pub struct Gate(Arc<tokio::sync::Semaphore>);

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self(Arc::new(tokio::sync::Semaphore::new(0)))
    }

    /// Lets everybody through.
    pub fn open(&self) {
        self.0.close();
    }

    async fn pass(&self) {
        // Only ever ends by the gate being closed for acquiring, which opens it.
        let _ = self.0.acquire().await;
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

/// What happens to a request.
#[derive(Clone)]
pub enum Effect {
    /// Answers a problem document with this status.
    Status(u16),
    /// The same with headers, such as `("retry-after", "1")`.
    StatusWith(u16, Vec<(&'static str, String)>),
    /// Answers exactly this, with a media type.
    Body(u16, &'static str, Vec<u8>),
    /// Answers 200 with a body that is not JSON, though it says so.
    Garbage,
    /// Answers 302 with this `Location`.
    Redirect(String),
    /// Answers as usual, later.
    Delay(Duration),
    /// Answers as usual, once the gate is opened.
    Hold(Gate),
    /// Never answers.
    Hang,
    /// Resets the connection instead of answering.
    Reset,
    /// Announces the whole body, sends this many bytes and breaks the connection.
    Truncate(usize),
    /// Sends the body byte by byte, with this pause before each.
    Trickle(Duration),
    /// Changes a byte of each file's content; same length.
    WrongBytes,
    /// Drops one trailing line feed of each file's content.
    DropNewline,
    /// Answers `contentText: null`.
    NullText,
    /// Changes the JSON answer at will.
    Edit(Arc<dyn Fn(&mut Value) + Send + Sync>),
}

impl Effect {
    /// Changes the JSON answer at will.
    pub fn edit(change: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        Self::Edit(Arc::new(change))
    }
}

type Condition = Arc<dyn Fn(&Seen) -> bool + Send + Sync>;

/// Which requests are disturbed, how, and how often. All conditions must hold.
#[derive(Clone)]
pub struct Fault {
    effect: Effect,
    matches: Vec<Condition>,
    skip: usize,
    left: usize,
}

impl Fault {
    /// Disturbs every request, until [`TestRegistry::clear_faults`].
    pub fn new(effect: Effect) -> Self {
        Self {
            effect,
            matches: Vec::new(),
            skip: 0,
            left: usize::MAX,
        }
    }

    /// Only requests of this kind.
    pub fn on(self, kind: RouteKind) -> Self {
        self.when(move |seen| seen.kind == kind)
    }

    /// Only requests that carry files' content, on whichever route.
    pub fn on_content(self) -> Self {
        self.when(|seen| seen.kind.is_content())
    }

    /// Only requests whose path (percent-encoded) contains `text`.
    pub fn path_contains(self, text: &str) -> Self {
        let text = text.to_owned();
        self.when(move |seen| seen.path.contains(&text))
    }

    /// Only requests that `matches`.
    pub fn when(mut self, matches: impl Fn(&Seen) -> bool + Send + Sync + 'static) -> Self {
        self.matches.push(Arc::new(matches));
        self
    }

    /// Lets the first `n` of them pass.
    pub fn after(mut self, n: usize) -> Self {
        self.skip = n;
        self
    }

    /// At most `n` times.
    pub fn times(mut self, n: usize) -> Self {
        self.left = n;
        self
    }

    /// Once.
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// The effect, if the fault applies to the request, used up by one.
    pub(super) fn strike(&mut self, seen: &Seen) -> Option<Effect> {
        if self.left == 0 || !self.matches.iter().all(|matches| matches(seen)) {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.left -= 1;
        Some(self.effect.clone())
    }
}

/// Answers a request under a fault.
pub(super) async fn apply(
    effect: Effect,
    connection: &Connection,
    request: Request,
    next: Next,
) -> Response {
    match effect {
        Effect::Status(status) => problem(status, &[]),
        Effect::StatusWith(status, headers) => problem(status, &headers),
        Effect::Body(status, kind, bytes) => plain(status, kind, bytes),
        Effect::Garbage => plain(200, "application/json", b"<html>{\"not\": json".to_vec()),
        Effect::Redirect(location) => problem(302, &[("location", location)]),
        Effect::Delay(pause) => {
            tokio::time::sleep(pause).await;
            next.run(request).await
        }
        Effect::Hold(gate) => {
            gate.pass().await;
            next.run(request).await
        }
        Effect::Hang => std::future::pending().await,
        Effect::Reset => {
            connection.0.store(true, Ordering::SeqCst);
            // Writing it makes the connection notice.
            plain(200, "text/plain", Vec::new())
        }
        Effect::Truncate(at) => {
            let (parts, whole) = collect(next.run(request).await).await;
            let length = whole.len();
            let start = whole.slice(..at.min(length));
            let broken = futures_util::stream::iter([
                Ok(start),
                Err(io::Error::from(io::ErrorKind::ConnectionAborted)),
            ]);
            let mut response = Response::from_parts(parts, Body::from_stream(broken));
            announce(&mut response, length);
            response
        }
        Effect::Trickle(pause) => {
            let (parts, whole) = collect(next.run(request).await).await;
            let length = whole.len();
            let drops = futures_util::stream::unfold(0, move |at| {
                let drop = (at < length).then(|| whole.slice(at..=at));
                async move {
                    let drop = drop?;
                    tokio::time::sleep(pause).await;
                    Some((Ok::<_, io::Error>(drop), at + 1))
                }
            });
            let mut response = Response::from_parts(parts, Body::from_stream(drops));
            announce(&mut response, length);
            response
        }
        Effect::WrongBytes => {
            rewrite(next.run(request).await, |bytes| {
                if let Some(byte) = bytes.first_mut() {
                    // Text stays text.
                    *byte = if *byte == b'#' { b'*' } else { b'#' };
                }
            })
            .await
        }
        Effect::DropNewline => {
            rewrite(next.run(request).await, |bytes| {
                if bytes.last() == Some(&b'\n') {
                    bytes.pop();
                }
            })
            .await
        }
        Effect::NullText => {
            edit(next.run(request).await, |json| {
                for_each_text(json, &mut |text| *text = Value::Null);
            })
            .await
        }
        Effect::Edit(change) => edit(next.run(request).await, |json| change(json)).await,
    }
}

fn plain(status: u16, kind: &'static str, bytes: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn problem(status: u16, headers: &[(&'static str, String)]) -> Response {
    let body = serde_json::json!({
        "type": "https://docs.musher.dev/errors/internal-error",
        "title": "Injected",
        "status": status,
        "detail": "a fault that the test asked for",
    });
    let mut response = plain(
        status,
        "application/problem+json",
        body.to_string().into_bytes(),
    );
    for (name, value) in headers {
        response
            .headers_mut()
            .insert(HeaderName::from_static(name), value.parse().unwrap());
    }
    response
}

async fn collect(response: Response) -> (http::response::Parts, Bytes) {
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    (parts, bytes)
}

fn announce(response: &mut Response, length: usize) {
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, length.into());
}

/// Changes a JSON answer; others stay.
async fn edit(response: Response, change: impl FnOnce(&mut Value)) -> Response {
    let (parts, bytes) = collect(response).await;
    let Ok(mut json) = serde_json::from_slice::<Value>(&bytes) else {
        return Response::from_parts(parts, bytes.into());
    };
    change(&mut json);
    Response::from_parts(parts, json.to_string().into())
}

/// Changes the files' content in an answer: its `contentText`s, or the body of a blob.
async fn rewrite(response: Response, change: impl Fn(&mut Vec<u8>)) -> Response {
    let (parts, bytes) = collect(response).await;
    let is_json = parts
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if !is_json {
        let mut bytes = bytes.to_vec();
        change(&mut bytes);
        return Response::from_parts(parts, bytes.into());
    }
    let mut json: Value = serde_json::from_slice(&bytes).unwrap();
    for_each_text(&mut json, &mut |text| {
        if let Value::String(string) = text {
            let mut bytes = std::mem::take(string).into_bytes();
            change(&mut bytes);
            // Cutting into a character makes it another one, which is wrong enough.
            *string = String::from_utf8_lossy(&bytes).into_owned();
        }
    });
    Response::from_parts(parts, json.to_string().into())
}

fn for_each_text(json: &mut Value, change: &mut impl FnMut(&mut Value)) {
    match json {
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| for_each_text(item, change)),
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == "contentText" {
                    change(value);
                } else {
                    for_each_text(value, change);
                }
            }
        }
        _ => {}
    }
}

/// A connection's switch: once set, it is reset at the next write.
#[derive(Debug, Clone)]
pub(super) struct Connection(Arc<AtomicBool>);

impl Connected<IncomingStream<'_, Port>> for Connection {
    fn connect_info(stream: IncomingStream<'_, Port>) -> Self {
        stream.remote_addr().clone()
    }
}

/// A listener whose connections can be reset by whoever answers on them.
pub(super) struct Port(pub(super) tokio::net::TcpListener);

impl Listener for Port {
    type Io = Resettable;
    type Addr = Connection;

    async fn accept(&mut self) -> (Resettable, Connection) {
        let (stream, _) = Listener::accept(&mut self.0).await;
        let connection = Connection(Arc::default());
        let io = Resettable {
            stream,
            connection: connection.clone(),
        };
        (io, connection)
    }

    fn local_addr(&self) -> io::Result<Connection> {
        Ok(Connection(Arc::default()))
    }
}

pub(super) struct Resettable {
    stream: TcpStream,
    connection: Connection,
}

impl Resettable {
    fn check(&self) -> io::Result<()> {
        if self.connection.0.load(Ordering::SeqCst) {
            // Closing then sends RST instead of FIN.
            self.stream.set_zero_linger()?;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl AsyncRead for Resettable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Resettable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
