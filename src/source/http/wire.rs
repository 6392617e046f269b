//! The HTTP library behind a few plain types: TLS, proxies, connections.
//!
//! Two sets of connections: one for loopback, which never uses a proxy (it would get the key in
//! the clear) and knows by itself where `localhost` is, and one for the network, which obeys the
//! proxy variables. Each is made by its first request: loading the system's certificates takes
//! milliseconds that a starting mount does not have.

use std::error::Error as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tracing::warn;
use url::Url;

use super::names::Names;
use super::{HttpSettings, problem};
use crate::config::value::is_loopback;
use crate::error::{Error, Result};

/// Most connections to one host that stay open without being used.
///
/// A burst of requests (names that are refreshed, read-ahead) opens one each over HTTP/1.1. Used in
/// turn they would all stay, and each keeps a buffer of up to 400 KiB once it has carried a file of
/// that size. What one reader and its read-ahead need between bursts finds one of these.
const MOST_IDLE: usize = 8;

/// Why there is no answer, or not all of it.
pub(super) struct Failure {
    pub(super) reason: String,
    /// Whether another attempt is pointless.
    pub(super) is_final: bool,
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let mut is_final = false;
        let mut causes: Vec<String> = Vec::new();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Wrappers that print their cause would say everything twice.
            if let Some(outer) = causes.last_mut()
                && outer.contains(&text)
            {
                if let Some(at) = outer.find(&text) {
                    outer.truncate(at);
                }
                *outer = outer.trim_end_matches([' ', ':']).to_owned();
            }
            causes.push(text);
            is_final |= is_certificate_error(error);
            cause = error.source();
        }
        // "client error (Connect)" is about the library, not about the network.
        causes.retain(|cause| !cause.is_empty() && !cause.starts_with("client error"));
        if causes.is_empty() {
            causes.push(error.to_string());
        }
        Self {
            reason: problem::printable(&causes.join(": ")),
            is_final,
        }
    }
}

/// A certificate that is not trusted now will not be in a second.
fn is_certificate_error(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return matches!(error, rustls::Error::InvalidCertificate(_));
    }
    // I/O errors hide what they wrap from `source`, and wrap each other.
    error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref)
        .is_some_and(|inner| is_certificate_error(inner))
}

/// An answer whose body has not been read.
pub(super) struct Answer(reqwest::Response);

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.0.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.0.headers()
    }

    /// The size of the body, if it is announced and not compressed.
    pub(super) fn announced(&self) -> Option<u64> {
        self.0.content_length()
    }

    /// The next piece of the body, decompressed; `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        Ok(self.0.chunk().await?)
    }
}

type Lazy = OnceLock<Result<reqwest::Client>>;

/// All connections.
pub(super) struct Wires {
    loopback: Lazy,
    network: Lazy,
    roots: Vec<reqwest::Certificate>,
    insecure_http: bool,
    connect: Duration,
    names: Arc<Names>,
}

impl Wires {
    pub(super) fn new(settings: &HttpSettings, connect: Duration) -> Result<Self> {
        let roots = match &settings.ca_file {
            None => Vec::new(),
            Some(path) => {
                let pem = std::fs::read(path).map_err(|error| Error::io(path, error))?;
                certificates(&pem).map_err(|reason| {
                    Error::Config(format!("the CA file {}: {reason}", path.display()))
                })?
            }
        };
        Ok(Self {
            loopback: Lazy::new(),
            network: Lazy::new(),
            roots,
            insecure_http: settings.insecure_http,
            connect,
            names: Arc::new(Names::new()),
        })
    }

    pub(super) fn check(&self, url: &Url) -> Result<()> {
        match url.scheme() {
            "https" => Ok(()),
            "http" if self.insecure_http || is_loopback(url) => Ok(()),
            "http" => Err(Error::Config(format!(
                "{} is plain HTTP to another machine, where everybody on the way can read the key \
                 and change the content; use https, or --insecure-http if that is fine",
                url.origin().ascii_serialization()
            ))),
            scheme => Err(Error::Config(format!(
                "a registry is reached by https, not {}",
                problem::printable(scheme)
            ))),
        }
    }

    /// Sends a GET; the future ends with the headers of the answer.
    pub(super) fn send(
        &self,
        url: &Url,
        headers: HeaderMap,
    ) -> Result<impl Future<Output = Result<Answer, Failure>> + use<>> {
        self.send_body(Method::GET, url, headers, None)
    }

    /// Sends any request; the future ends with the headers of the answer.
    pub(super) fn send_body(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Option<Bytes>,
    ) -> Result<impl Future<Output = Result<Answer, Failure>> + use<>> {
        let client = if is_loopback(url) {
            self.loopback.get_or_init(|| self.build(true))
        } else {
            self.network.get_or_init(|| self.build(false))
        };
        let client = client.as_ref().map_err(Clone::clone)?;
        let mut request = client.request(method, url.clone()).headers(headers);
        if let Some(body) = body {
            request = request.body(body);
        }
        let answer = request.send();
        Ok(async move { Ok(Answer(answer.await?)) })
    }

    fn build(&self, loopback: bool) -> Result<reqwest::Client> {
        // Fails if the process has chosen a provider before, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("musherfs/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(self.connect)
                .dns_resolver(Arc::clone(&self.names))
                .tls_version_min(reqwest::tls::Version::TLS_1_2)
                // Followed, counted and retried by the caller.
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .pool_max_idle_per_host(MOST_IDLE)
                // A laptop that slept has connections which only look alive.
                .http2_keep_alive_interval(Some(Duration::from_secs(15)))
                .http2_keep_alive_timeout(Duration::from_secs(5));
            if !loopback {
                return builder;
            }
            let ips: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            builder
                .no_proxy()
                .resolve_to_addrs("localhost", &ips.map(|ip| SocketAddr::new(ip, 0)))
        };
        let with_system = builder()
            .tls_backend_rustls()
            .tls_certs_merge(self.roots.iter().cloned())
            .build();
        with_system
            .or_else(|error| {
                // A container without certificates can still reach loopback and its own CA.
                let reason = Failure::from(error).reason;
                warn!(%reason, "the system's certificates cannot be used");
                builder().tls_certs_only(self.roots.iter().cloned()).build()
            })
            .map_err(|error| {
                Error::Config(format!(
                    "cannot set up TLS: {}",
                    Failure::from(error).reason
                ))
            })
    }
}

/// All certificates of a PEM file; at least one, all of them usable.
fn certificates(pem: &[u8]) -> Result<Vec<reqwest::Certificate>, String> {
    let mut store = rustls::RootCertStore::empty();
    let mut certificates = Vec::new();
    for der in CertificateDer::pem_slice_iter(pem) {
        let der = der.map_err(|error| error.to_string())?;
        certificates.push(reqwest::Certificate::from_der(&der).map_err(|error| error.to_string())?);
        store.add(der).map_err(|error| error.to_string())?;
    }
    if certificates.is_empty() {
        return Err("no certificate in it".into());
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wires(insecure_http: bool) -> Wires {
        let settings = HttpSettings {
            insecure_http,
            ..HttpSettings::default()
        };
        Wires::new(&settings, Duration::from_secs(1)).unwrap()
    }

    #[test]
    fn plain_http_is_for_loopback_unless_allowed() {
        for (url, allowed) in [
            ("https://api.musher.dev", true),
            ("http://127.0.0.1:1", true),
            ("http://127.9.9.9", true),
            ("http://[::1]:8080/base", true),
            ("http://LocalHost:9", true),
            ("http://localhost.example.com", false),
            ("http://128.0.0.1", false),
            ("http://[::2]", false),
            ("http://0.0.0.0", false),
            ("ftp://127.0.0.1", false),
            ("file:///etc/passwd", false),
        ] {
            let url: Url = url.parse().unwrap();
            let checked = wires(false).check(&url);
            assert_eq!(checked.is_ok(), allowed, "{url}");
            if let Err(error) = checked {
                assert!(matches!(error, Error::Config(_)), "{error:?}");
            }
            let scheme = url.scheme().starts_with("http");
            assert_eq!(wires(true).check(&url).is_ok(), scheme, "{url}");
        }
    }

    #[test]
    fn a_ca_file_without_certificates_is_refused_by_name() {
        for content in [
            "",
            "hello",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), content).unwrap();
            let settings = HttpSettings {
                ca_file: Some(file.path().to_owned()),
                ..HttpSettings::default()
            };
            let error = Wires::new(&settings, Duration::ZERO).err().unwrap();
            let name = file.path().display().to_string();
            assert!(error.to_string().contains(&name), "{error}");
        }
    }
}
