//! The way to the registry, step by step: the first that fails names the cause of the others.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use tokio::net::{TcpStream, lookup_host};
use url::Url;

use super::{Area, Finding, Probe, oci};
use crate::credentials::{KeyChain, KeyOrigin};
use crate::error::Error;
use crate::source::Deadline;
use crate::source::api::{ApiSettings, ApiSource, KeyVerdict};
use crate::source::http::{HttpClient, HttpSettings};

/// Clocks may differ so much before certificates and expiries are judged wrongly.
const SKEW: Duration = Duration::from_secs(60);

pub(super) async fn check(probe: &Probe) -> Vec<Finding> {
    let mut findings = vec![key(probe)];
    findings.extend(probe.keys.problems().into_iter().map(|problem| {
        Finding::warn(
            "key-file",
            format!("an API key file is not used: {problem}"),
            "only its owner may be able to read it: `chmod 600` on it, or remove it",
        )
    }));
    if *probe.config.offline {
        findings.push(Finding::ok("registry", "offline: nobody is asked"));
        return findings;
    }
    let deadline = Deadline::after(probe.patience);
    let api = async {
        match probe.config.has_api() {
            true => api(probe, &probe.config.api_url, probe.keys.clone(), deadline).await,
            // The API's key is none of an OCI registry's business.
            false => Vec::new(),
        }
    };
    // At the same time: each may take all of the patience.
    let (api, others) = tokio::join!(api, oci::check(probe, deadline));
    findings.extend(api);
    findings.extend(others);
    findings
}

/// The way to an API, and whether it answers.
pub(super) async fn api(
    probe: &Probe,
    url: &Url,
    keys: KeyChain,
    deadline: Deadline,
) -> Vec<Finding> {
    let source = match source(probe, url, keys) {
        Ok(source) => source,
        Err(finding) => return vec![finding],
    };
    // At the same time: the steps tell where it fails, the question whether it works.
    let (mut findings, asked) = tokio::join!(
        steps(probe, url, deadline),
        ask(probe, url.as_str(), &source, deadline)
    );
    findings.extend(asked);
    findings
}

fn key(probe: &Probe) -> Finding {
    const ID: &str = "key";
    match probe.keys.origin() {
        Ok(Some(KeyOrigin::Flag)) => Finding::warn(
            ID,
            "the API key is on the command line, where all users of this machine can see it",
            "use MUSHER_API_KEY or --api-key-file",
        ),
        Ok(Some(origin)) => Finding::ok(ID, format!("the API key is from {origin}")),
        Ok(None) => Finding::ok(ID, "there is no API key: only public bundles can be read"),
        Err(error) => Finding::fail(
            ID,
            Area::Key,
            error.to_string(),
            "write the key into that file, with mode 600, or leave --api-key-file out",
        ),
    }
}

pub(super) fn http(probe: &Probe) -> Result<HttpClient, Finding> {
    HttpClient::new(&HttpSettings {
        ca_file: probe.config.ca_file.value.clone(),
        insecure_http: *probe.config.insecure_http,
        ..HttpSettings::default()
    })
    .map_err(|error| {
        let remedy = "name a readable PEM file with --ca-file, or leave it out";
        Finding::fail("ca-file", Area::Configuration, error.to_string(), remedy)
    })
}

/// A URL that must not be asked.
pub(super) fn bad_url(error: &Error) -> Finding {
    Finding::fail(
        "registry-url",
        Area::Configuration,
        error.to_string(),
        "name an https URL; http only on this machine or with --insecure-http",
    )
}

fn source(probe: &Probe, url: &Url, keys: KeyChain) -> Result<ApiSource, Finding> {
    let http = http(probe)?;
    let base = url.clone();
    ApiSource::new(ApiSettings { base, keys, http }).map_err(|error| bad_url(&error))
}

/// Whether a connection to this host goes through a proxy, as far as the variables tell.
fn proxy<'p>(probe: &'p Probe, url: &Url, host: &str) -> Option<&'p (&'static str, String)> {
    let is_loopback = host == "localhost" || host.starts_with("127.") || host == "[::1]";
    let named = |name: &str| {
        let mut all = probe.proxies.iter();
        all.find(|(other, _)| other.eq_ignore_ascii_case(name))
    };
    let exempt = named("no_proxy").is_some_and(|(_, list)| {
        list.split(',').map(str::trim).any(|pattern| {
            pattern == "*"
                || (!pattern.is_empty() && host.ends_with(pattern.trim_start_matches('.')))
        })
    });
    if is_loopback || exempt {
        return None;
    }
    named(&format!("{}_proxy", url.scheme())).or_else(|| named("all_proxy"))
}

/// Name and connection.
pub(super) async fn steps(probe: &Probe, url: &Url, deadline: Deadline) -> Vec<Finding> {
    let Some(host) = url.host_str() else {
        return Vec::new();
    };
    if let Some((name, value)) = proxy(probe, url, host) {
        let message = format!("{host} is reached through the proxy of {name}, {value}");
        return vec![Finding::ok("proxy", message)];
    }
    let port = url.port_or_known_default().unwrap_or(443);
    let plain = host.trim_matches(['[', ']']);
    let unresolved = |reason: String| {
        Finding::fail(
            "dns",
            Area::Network,
            format!("the name {host} cannot be looked up: {reason}"),
            "check the registry's URL, the network, and the servers in /etc/resolv.conf",
        )
    };
    let addresses: Vec<SocketAddr> =
        match tokio::time::timeout(deadline.remaining(), lookup_host((plain, port))).await {
            Ok(Ok(found)) => found.collect(),
            Ok(Err(error)) => return vec![unresolved(error.to_string())],
            Err(_) => return vec![unresolved("no answer in time".to_owned())],
        };
    let mut findings = vec![Finding::ok(
        "dns",
        format!("{host} has {} addresses", addresses.len()),
    )];
    let mut last = "it has no address".to_owned();
    for address in &addresses {
        match tokio::time::timeout(deadline.remaining(), TcpStream::connect(address)).await {
            Ok(Ok(_)) => {
                findings.push(Finding::ok("tcp", format!("{address} accepts connections")));
                return findings;
            }
            Ok(Err(error)) => last = format!("{address}: {error}"),
            Err(_) => last = format!("{address}: no answer in time"),
        }
    }
    findings.push(Finding::fail(
        "tcp",
        Area::Network,
        format!("{host} cannot be connected to: {last}"),
        "check that the registry runs, the port, and firewalls; behind a proxy, set HTTPS_PROXY",
    ));
    findings
}

/// A real question, with the key.
async fn ask(probe: &Probe, url: &str, source: &ApiSource, deadline: Deadline) -> Vec<Finding> {
    const ID: &str = "registry";
    let checked = match source.check(deadline).await {
        Ok(checked) => checked,
        Err(error) => return vec![no_answer(probe, ID, url, &error)],
    };
    let mut findings = vec![Finding::ok(ID, format!("{url} answers"))];
    findings.push(match &checked.key {
        KeyVerdict::NoKey => Finding::ok("key-accepted", "no key is sent"),
        KeyVerdict::Accepted => Finding::ok("key-accepted", "the registry takes the API key"),
        KeyVerdict::Refused(reason) => Finding::fail(
            "key-accepted",
            Area::Key,
            format!("the registry refuses the API key: {reason}"),
            "get a new one, with `musher login`, and check MUSHER_API_KEY for an old one",
        ),
        KeyVerdict::Unknown(reason) => Finding::warn(
            "key-accepted",
            format!("the registry did not say whether it takes the API key: {reason}"),
            "run it again with more --timeout",
        ),
    });
    findings.extend(checked.date.map(|(theirs, ours)| clock(theirs, ours)));
    findings
}

fn clock(theirs: SystemTime, ours: SystemTime) -> Finding {
    let (skew, direction) = match ours.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    if skew <= SKEW {
        return Finding::ok("clock", "this machine's clock agrees with the registry's");
    }
    Finding::warn(
        "clock",
        format!(
            "this machine's clock is {} s {direction} the registry's",
            skew.as_secs()
        ),
        "set it, with `timedatectl set-ntp true`: certificates and the cache's expiries are judged by it",
    )
}

/// Why there is no answer, or none of a registry.
pub(super) fn no_answer(probe: &Probe, id: &'static str, url: &str, error: &Error) -> Finding {
    let text = error.to_string();
    match error {
        Error::Timeout { .. } => Finding::fail(
            id,
            Area::Time,
            format!("{url} did not answer within {:?}", probe.patience),
            "it is slow or stuck; `musherfs doctor --timeout 10s` waits longer",
        ),
        Error::Malformed { .. } | Error::NotFound { .. } | Error::Rejected { .. } => Finding::fail(
            id,
            Area::Network,
            format!("{url} does not answer as a registry does: {text}"),
            "check the URL: a login page or another service may answer there",
        ),
        Error::Denied { .. } => Finding::fail(
            id,
            Area::Network,
            format!("{url} refuses everybody: {text}"),
            "check the URL, and whether a proxy or firewall stands in front of it",
        ),
        _ if is_certificate(&text) => Finding::fail(
            "tls",
            Area::Network,
            format!("the certificate of {url} is not trusted: {text}"),
            "trust your organisation's CA with --ca-file FILE.pem; check this machine's clock and the URL's name",
        ),
        _ => Finding::fail(
            id,
            Area::Network,
            format!("{url} cannot be asked: {text}"),
            "check the network, the proxy settings and the registry's URL",
        ),
    }
}

fn is_certificate(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["certificate", "tls", "unknownissuer", "handshake"]
        .iter()
        .any(|word| text.contains(word))
}
