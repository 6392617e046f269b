//! A key in the desktop's secret service, where `musher login` puts it when there is one.
//!
//! The service name is `musher/<host[:port]>`, the user name `api-key`. A secret service can ask
//! the user to unlock it and so never answer; it is given three seconds in a thread of its own, and
//! it is not asked again while it still thinks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use url::Url;

use super::{ApiKey, KeyOrigin};
use crate::error::Result;

/// As the other Musher tools use it.
const USER: &str = "api-key";
/// How long the secret service may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// The entries that may hold the key of one registry.
#[derive(Debug)]
pub(super) struct Keyring {
    services: Vec<String>,
    busy: Arc<AtomicBool>,
}

impl Keyring {
    /// `None` if the URL has no host.
    pub(super) fn new(api: &Url) -> Option<Self> {
        Some(Self {
            services: services(api)?,
            busy: Arc::default(),
        })
    }

    /// The first key found. That there is no secret service is as usual as that it has no key: both
    /// are `None`.
    pub(super) fn read(&self) -> Result<Option<(ApiKey, KeyOrigin)>> {
        if self.busy.swap(true, Ordering::AcqRel) {
            return Ok(None);
        }
        let (sender, receiver) = mpsc::channel();
        let services = self.services.clone();
        let busy = Arc::clone(&self.busy);
        let asked = thread::Builder::new()
            .name("keyring".into())
            .spawn(move || {
                let found = services.into_iter().find_map(|service| {
                    let entry = keyring::Entry::new(&service, USER).ok()?;
                    Some((entry.get_password().ok()?, service))
                });
                busy.store(false, Ordering::Release);
                // Nobody waits any more if it took too long.
                let _ = sender.send(found);
            });
        if asked.is_err() {
            self.busy.store(false, Ordering::Release);
            return Ok(None);
        }
        match receiver.recv_timeout(PATIENCE) {
            Ok(Some((text, service))) if !text.trim().is_empty() => {
                Ok(Some((ApiKey::new(text)?, KeyOrigin::Keyring(service))))
            }
            Ok(_) => Ok(None),
            Err(_) => {
                tracing::warn!("the keyring did not answer within {PATIENCE:?}, going on without");
                Ok(None)
            }
        }
    }
}

/// The default port is left out by all tools but the Python SDK, which keeps it when it was typed.
fn services(api: &Url) -> Option<Vec<String>> {
    let host = api.host_str()?;
    Some(match (api.port(), api.port_or_known_default()) {
        (Some(port), _) => vec![format!("musher/{host}:{port}")],
        (None, Some(port)) => vec![format!("musher/{host}"), format!("musher/{host}:{port}")],
        (None, None) => vec![format!("musher/{host}")],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_named_after_the_host_as_the_other_tools_name_it() {
        let named = |url: &str| services(&Url::parse(url).unwrap()).unwrap();
        assert_eq!(
            named("https://api.musher.dev/base"),
            ["musher/api.musher.dev", "musher/api.musher.dev:443"]
        );
        assert_eq!(named("http://127.0.0.1:8787"), ["musher/127.0.0.1:8787"]);
    }
}
