//! Looking up the names of hosts, apart from all other work.
//!
//! The C library's resolver blocks, cannot be called off, and with silent name servers takes longer
//! than any deadline here. So a name has one thread, however many requests wait for it, and that is
//! nobody else's: the runtime's threads for blocking work also verify what is cached, and whoever reads
//! that must not wait for name servers.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::oneshot;

use crate::single_flight::SingleFlight;

/// How long requests join a lookup that is under way.
///
/// glibc is patient with name servers for up to half a minute: once they answer again, nobody should
/// have to wait for what was asked before. So there are a few threads a name at most.
const JOINED: Duration = Duration::from_secs(5);

/// The port is the request's.
type Found = Result<Arc<[SocketAddr]>, Arc<str>>;

/// A resolver for [`reqwest::ClientBuilder::dns_resolver`].
pub(super) struct Names {
    /// By name and by when it was asked for, in [`JOINED`] since `began`.
    lookups: Arc<SingleFlight<(String, u128), Found>>,
    began: Instant,
    look_up: fn(&str) -> io::Result<Vec<SocketAddr>>,
}

impl Names {
    pub(super) fn new() -> Self {
        Self::with(|host| Ok((host, 0).to_socket_addrs()?.collect()))
    }

    fn with(look_up: fn(&str) -> io::Result<Vec<SocketAddr>>) -> Self {
        Self {
            lookups: Arc::default(),
            began: Instant::now(),
            look_up,
        }
    }

    fn find(&self, host: String) -> impl Future<Output = Found> + use<> {
        let lookups = Arc::clone(&self.lookups);
        let turn = self.began.elapsed().as_nanos() / JOINED.as_nanos();
        let look_up = self.look_up;
        async move {
            let key = (host.clone(), turn);
            let found = lookups.run(key, || in_a_thread(host, look_up)).await;
            found.unwrap_or_else(|lost| Err(lost.to_string().into()))
        }
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let found = self.find(name.as_str().to_owned());
        Box::pin(async move {
            let found = found.await.map_err(|reason| reason.to_string())?;
            let addresses: Addrs = Box::new(Vec::from(&*found).into_iter());
            Ok(addresses)
        })
    }
}

async fn in_a_thread(host: String, look_up: fn(&str) -> io::Result<Vec<SocketAddr>>) -> Found {
    let (sender, found) = oneshot::channel();
    let work = move || {
        // Whoever asked may have gone.
        let _ = sender.send(look_up(&host));
    };
    let started = thread::Builder::new().name("dns".to_owned()).spawn(work);
    let found = match started {
        Ok(_) => found
            .await
            .unwrap_or_else(|lost| Err(io::Error::other(lost))),
        Err(error) => Err(error),
    };
    match found {
        Ok(addresses) => Ok(addresses.into()),
        Err(error) => Err(error.to_string().into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_requests_share_a_lookup_and_leave_the_blocking_threads_alone() {
        static LOOKUPS: AtomicU32 = AtomicU32::new(0);
        let names = Names::with(|host| {
            LOOKUPS.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(50));
            assert_eq!(thread::current().name(), Some("dns"));
            let port = u16::try_from(host.len()).unwrap();
            Ok(vec![([127, 0, 0, 1], port).into()])
        });
        let all = (0..600).map(|_| tokio::spawn(names.find("abc".to_owned())));
        for found in all.collect::<Vec<_>>() {
            assert_eq!(found.await.unwrap().unwrap()[0].port(), 3);
        }
        // More than one only if it took longer than requests join one.
        assert!(LOOKUPS.load(Ordering::Relaxed) < 10);
    }

    #[tokio::test]
    async fn a_name_that_is_unknown_is_an_error_that_says_so() {
        let error = Names::new().find("no-such-host.invalid".to_owned()).await;
        assert!(error.unwrap_err().contains("lookup"));
        let lost = Names::with(|_| panic!("on purpose")).find("x".to_owned());
        assert!(lost.await.is_err());
    }
}
