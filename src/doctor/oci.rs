//! Whether OCI registries and mirrors answer, and let us in.
//!
//! A registry is asked for `/v2/`, the front page that the specification wants, with the login that
//! its bundles would be fetched with. What is said of a mirror is a warning at most: readers get their
//! files from the next source.

use futures_util::future::join_all;

use super::registry::{api, bad_url, http, no_answer, steps};
use super::{Area, Finding, Level, Probe};
use crate::client::{self, Party};
use crate::credentials::docker::LoginChain;
use crate::error::Error;
use crate::source::Deadline;
use crate::source::http::{Lane, Response};
use crate::source::oci::auth::Scope;
use crate::source::oci::client::{Ask, RegistryClient};
use crate::source::oci::reference::Endpoint;

const ID: &str = "oci-registry";

/// Most bytes of a front page.
const MOST: u64 = 64 * 1024;

/// Asks everybody that the settings name besides the API.
pub(super) async fn check(probe: &Probe, deadline: Deadline) -> Vec<Finding> {
    if client::layout_of(&probe.config).is_some() {
        // A directory, which is looked at when the settings are.
        return vec![Finding::ok(
            ID,
            "bundles are read from a directory, and nobody is asked",
        )];
    }
    let parties = match client::parties(&probe.config, &probe.keys, &probe.logins) {
        Ok(parties) => parties,
        Err(error) => return vec![bad_url(&error)],
    };
    let asked = parties.into_iter().map(|(party, is_mirror)| async move {
        let mut findings = match party {
            Party::Api { url, keys } => api(probe, &url, keys, deadline).await,
            Party::Oci { endpoint, logins } => {
                registry(probe, endpoint, logins, is_mirror, deadline).await
            }
        };
        if is_mirror {
            for finding in &mut findings {
                finding.level = finding.level.min(Level::Warn);
                finding.message.insert_str(0, "of a mirror: ");
            }
        }
        findings
    });
    join_all(asked).await.into_iter().flatten().collect()
}

async fn registry(
    probe: &Probe,
    endpoint: Endpoint,
    logins: LoginChain,
    is_mirror: bool,
    deadline: Deadline,
) -> Vec<Finding> {
    let url = endpoint.origin().clone();
    let client = http(probe).and_then(|http| {
        RegistryClient::new(endpoint.clone(), http, logins.clone()).map_err(|error| bad_url(&error))
    });
    let client = match client {
        Ok(client) => client,
        Err(finding) => return vec![finding],
    };
    let asked = async {
        let (has_login, mut findings) = login(&endpoint, logins, deadline).await;
        let answer = front_page(&client, deadline).await;
        findings.push(judge(probe, &endpoint, has_login, is_mirror, answer));
        findings
    };
    // At the same time: the steps tell where it fails, the question whether it works.
    let (mut findings, asked) = tokio::join!(steps(probe, &url, deadline), asked);
    findings.extend(asked);
    findings
}

/// Whether there is a login; it is not told.
async fn login(
    endpoint: &Endpoint,
    logins: LoginChain,
    deadline: Deadline,
) -> (bool, Vec<Finding>) {
    const ID: &str = "oci-login";
    let host = endpoint.host();
    // A credential helper may be asked, which is another program.
    let looking = async {
        let found = tokio::task::spawn_blocking(move || logins.lookup()).await;
        found.unwrap_or_else(|lost| Err(Error::Internal(lost.to_string())))
    };
    match deadline.run("the login", looking).await {
        Ok(Some(_)) => {
            let message = format!("there is a login for {host}");
            (true, vec![Finding::ok(ID, message)])
        }
        Ok(None) => {
            let message = format!("there is no login for {host}: it is asked as nobody");
            (false, vec![Finding::ok(ID, message)])
        }
        Err(error) => (
            false,
            vec![Finding::fail(
                ID,
                Area::Key,
                format!("the login for {host} cannot be had: {error}"),
                format!(
                    "`docker login {host}` writes it anew; a credential helper must be installed and answer"
                ),
            )],
        ),
    }
}

async fn front_page(client: &RegistryClient, deadline: Deadline) -> Result<Response, Error> {
    let ask = Ask {
        lane: Lane::Names,
        scope: &Scope::none(),
        path: "",
        accept: "application/json",
        what: "its front page",
        limit: MOST,
    };
    client.get(ask, deadline).await
}

fn judge(
    probe: &Probe,
    endpoint: &Endpoint,
    has_login: bool,
    is_mirror: bool,
    answer: Result<Response, Error>,
) -> Finding {
    let (url, host) = (endpoint.to_string(), endpoint.host());
    let refused = |reason: &str| match has_login {
        true => Finding::fail(
            ID,
            Area::Key,
            format!("{url} refuses the login: {reason}"),
            format!(
                "log in again with `docker login {host}`, or check --oci-user and its password"
            ),
        ),
        false => Finding::warn(
            ID,
            format!("{url} wants a login, and there is none: {reason}"),
            format!("`docker login {host}`, unless all bundles there are public"),
        ),
    };
    let no_registry = |what: String| {
        Finding::fail(
            ID,
            Area::Network,
            format!("{url} does not answer as an OCI registry does: {what}"),
            "check the host and the port: a login page, a proxy or another service may answer there",
        )
    };
    let response = match answer {
        Ok(response) => response,
        Err(Error::Denied { reason, .. }) => return refused(&reason),
        Err(Error::Malformed { reason, .. }) => return no_registry(reason),
        Err(error) => return no_answer(probe, ID, &url, &error),
    };
    match response.status.as_u16() {
        200..300 if is_registry(&response) => {
            let whom = if has_login {
                " and takes the login"
            } else {
                ""
            };
            Finding::ok(ID, format!("{url} answers{whom}"))
        }
        200..300 => no_registry("its front page is none".to_owned()),
        401 | 403 => refused(&format!("it says {}", response.status)),
        // A cache in front of a registry may pass on content only.
        404 if is_mirror => Finding::ok(ID, format!("{url} answers, though not for /v2/")),
        429 | 500.. => Finding::fail(
            ID,
            Area::Network,
            format!("{url} is not well: it says {}", response.status),
            "try again later, or ask its operator",
        ),
        _ => no_registry(format!("it says {}", response.status)),
    }
}

/// A registry's front page is empty or JSON, or has the header of the first ones.
fn is_registry(response: &Response) -> bool {
    let body = response.body.trim_ascii_start();
    response
        .headers
        .contains_key("docker-distribution-api-version")
        || body.is_empty()
        || body.starts_with(b"{")
}
