//! A small, real registry over a directory: the HTTP API that the Musher tools speak, and the read
//! side of the OCI Distribution API.
//!
//! ```text
//!   GET /v1/…  ──► routes ──┐
//!   GET /v2/…  ──► oci   ───┼──► lifecycle (which version a name means) ──► storage ──► DIR
//!   publish, yank, tag ─────┘
//! ```
//!
//! It is what demonstrations, tests and self-hosted teams run on. Over HTTP it only reads; who may
//! write to the directory publishes.
//!
//! **Who sees what.** Public versions need no key on the hub and OCI routes. A registry with tokens
//! asks for one on the namespace routes (401 without), as the hosted service does; one without
//! tokens serves its public versions there too. Private versions are served to holders of a token
//! only, and for everybody else they do not exist.

pub mod lifecycle;
pub mod oci;
mod routes;
pub mod samples;
pub mod storage;

pub use routes::{RouteKind, router};
pub use storage::{Listed, Listing, Release, Storage};

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::digest::Digest;

/// How long [`serve`] waits for requests in flight once it was told to stop.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// A key that opens private bundles. Only its digest is kept, so it can neither be printed nor
/// guessed from how long a comparison takes.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Digest);

impl Token {
    /// A token that is presented as `secret`.
    pub fn new(secret: &str) -> Self {
        Self(Digest::of(secret.as_bytes()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What is served, and to whom.
#[derive(Debug, Clone)]
pub struct Registry {
    /// The bundles.
    pub storage: Arc<Storage>,
    /// The keys that are accepted. With none, nobody sees private bundles, and a presented key is
    /// ignored.
    pub tokens: Vec<Token>,
    /// `host[:port]` for `ociRef`, as clients reach this registry; `null` is answered without it.
    pub oci_host: Option<String>,
}

impl Registry {
    /// A registry without tokens.
    pub fn new(storage: Arc<Storage>) -> Self {
        Self {
            storage,
            tokens: Vec::new(),
            oci_host: None,
        }
    }

    /// Accepts `secret` as a key.
    pub fn with_token(mut self, secret: &str) -> Self {
        self.tokens.push(Token::new(secret));
        self
    }
}

/// Serves `registry` until `shutdown` is done, and then for at most [`SHUTDOWN_GRACE`] the requests
/// in flight.
///
/// # Errors
///
/// Those of the listener.
pub async fn serve(
    listener: TcpListener,
    registry: Registry,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let server = axum::serve(listener, router(registry)).with_graceful_shutdown(async move {
        shutdown.await;
        // Nobody listens if the server already failed.
        let _ = stopping.send(());
    });
    let bound = async {
        match stopped.await {
            Ok(()) => tokio::time::sleep(SHUTDOWN_GRACE).await,
            // Only when the server is done, which the other branch sees.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        result = server.into_future() => result,
        () = bound => {
            tracing::debug!("requests still in flight are cut off");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
