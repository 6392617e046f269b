//! Logins and tokens: who gets one, and how often.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use musherfs::credentials::docker::{LoginChain, LoginFiles};
use musherfs::source::Source;
use musherfs::source::http::{HttpClient, HttpSettings};
use musherfs::source::oci::{OciSettings, OciSource};
use serde_json::{Value, json};

use super::fake::{Guard, TokenServer};
use super::fault_server::{FaultServer, Reply};
use super::*;

/// "ada:secret" and "ada:changed", as HTTP has them.
const SECRET: &str = "Basic YWRhOnNlY3JldA==";
const CHANGED: &str = "Basic YWRhOmNoYW5nZWQ=";

fn write_password(machine: &Machine, password: &str) -> PathBuf {
    let path = machine.path().join("password");
    fs::write(&path, password).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn as_ada(machine: &Machine, registry: &FakeRegistry) -> Client {
    let path = write_password(machine, "secret");
    machine.client(&registry.host(), |overrides| {
        overrides.oci_user = Some("ada".into());
        overrides.oci_password_file = Some(path);
    })
}

const FILES: &[(&str, &[u8])] = &[("a", b"1"), ("b", b"2"), ("c", b"3")];

#[tokio::test]
async fn one_token_lets_a_whole_session_in() {
    let (registry, machine) = (FakeRegistry::start(), Machine::new());
    let tokens = TokenServer::start(300);
    *tokens.wants.lock().unwrap() = Some(SECRET.into());
    registry.publish("acme/kit", "1.0.0", FILES);
    registry.guard(tokens.guard());
    let client = as_ada(&machine, &registry);
    for (path, content) in FILES {
        assert_eq!(read(&client, "acme/kit", path).await.unwrap(), *content);
    }
    let asked = tokens.requests();
    assert_eq!(asked.len(), 1, "{asked:?}");
    let target = &asked[0].target;
    assert!(target.contains("service=fake"), "{target}");
    assert!(
        target.contains("scope=repository%3Aacme%2Fkit%3Apull"),
        "{target}"
    );
    // The login itself is for the token server alone.
    for request in registry.requests() {
        let shown = request.header("authorization").unwrap_or_default();
        assert!(!shown.starts_with("Basic"), "{request:?}");
    }
}

#[tokio::test]
async fn everybody_may_have_a_token_for_what_is_public() {
    let (registry, machine) = (FakeRegistry::start(), Machine::new());
    let tokens = TokenServer::start(300);
    registry.publish("acme/kit", "1.0.0", FILES);
    registry.guard(tokens.guard());
    let client = machine.plain(&registry);
    assert_eq!(read(&client, "acme/kit", "a").await.unwrap(), b"1");
    assert_eq!(tokens.requests()[0].header("authorization"), None);
}

#[tokio::test]
async fn a_storm_of_refusals_is_one_refresh_and_no_readers_error() {
    let (registry, machine) = (FakeRegistry::start(), Machine::new());
    let tokens = TokenServer::start(300);
    *tokens.wants.lock().unwrap() = Some(SECRET.into());
    let contents: Vec<String> = (0..64).map(|i| format!("file {i}")).collect();
    let files: Vec<(&str, &[u8])> = contents
        .iter()
        .map(|content| (content.as_str(), content.as_bytes()))
        .collect();
    registry.publish("acme/kit", "1.0.0", &files);
    registry.guard(tokens.guard());
    let client = as_ada(&machine, &registry);
    let loaded = manifest(&client, "acme/kit").await.unwrap();
    assert_eq!(tokens.requests().len(), 1);

    // In the middle of the session, long before its time.
    tokens.revoke();
    let reads = contents.iter().map(|path| read_of(&client, &loaded, path));
    for (read, content) in futures_util::future::join_all(reads)
        .await
        .iter()
        .zip(&contents)
    {
        assert_eq!(read.as_ref().unwrap(), content.as_bytes());
    }
    assert_eq!(tokens.requests().len(), 2);
}

#[tokio::test]
async fn a_token_that_has_ended_is_replaced_before_it_is_refused() {
    let (registry, machine) = (FakeRegistry::start(), Machine::new());
    // Ends at once.
    let tokens = TokenServer::start(0);
    registry.publish("acme/kit", "1.0.0", FILES);
    registry.guard(tokens.guard());
    let client = machine.plain(&registry);
    for (path, content) in FILES {
        assert_eq!(read(&client, "acme/kit", path).await.unwrap(), *content);
        // As long as a token of the shortest life is used.
        tokio::time::sleep(Duration::from_millis(900)).await;
    }
    let refused = registry.requests();
    let without = |r: &&fault_server::Request| r.header("authorization").is_none();
    let first: Vec<_> = refused.iter().filter(without).collect();
    assert!(first.len() <= 2, "only the first could not know: {first:?}");
    assert!(tokens.requests().len() >= 3);
}

#[tokio::test]
async fn a_password_that_changes_is_nobodys_error() {
    for bearer in [false, true] {
        let (registry, machine) = (FakeRegistry::start(), Machine::new());
        let tokens = TokenServer::start(300);
        *tokens.wants.lock().unwrap() = Some(SECRET.into());
        registry.publish("acme/kit", "1.0.0", FILES);
        registry.guard(match bearer {
            true => tokens.guard(),
            false => Guard::Basic(SECRET.into()),
        });
        let client = as_ada(&machine, &registry);
        assert_eq!(read(&client, "acme/kit", "a").await.unwrap(), b"1");

        write_password(&machine, "changed");
        *tokens.wants.lock().unwrap() = Some(CHANGED.into());
        tokens.revoke();
        if !bearer {
            registry.guard(Guard::Basic(CHANGED.into()));
        }
        assert_eq!(read(&client, "acme/kit", "b").await.unwrap(), b"2");
    }
}

#[tokio::test]
async fn without_a_valid_login_what_is_cached_stays_and_the_rest_says_what_to_do() {
    for bearer in [false, true] {
        let (registry, machine) = (FakeRegistry::start(), Machine::new());
        let tokens = TokenServer::start(300);
        *tokens.wants.lock().unwrap() = Some(SECRET.into());
        registry.publish("acme/kit", "1.0.0", FILES);
        registry.guard(match bearer {
            true => tokens.guard(),
            false => Guard::Basic(SECRET.into()),
        });
        let client = as_ada(&machine, &registry);
        assert_eq!(read(&client, "acme/kit", "a").await.unwrap(), b"1");

        *tokens.wants.lock().unwrap() = Some(CHANGED.into());
        tokens.revoke();
        if !bearer {
            registry.guard(Guard::Basic(CHANGED.into()));
        }
        assert_eq!(read(&client, "acme/kit", "a").await.unwrap(), b"1");
        let error = read(&client, "acme/kit", "b").await.unwrap_err();
        assert!(matches!(error, Error::Denied { .. }), "{error}");
        let remedy = format!("docker login {}", registry.host());
        assert!(error.to_string().contains(&remedy), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn no_login_goes_along_with_a_redirect() {
    let (registry, machine) = (FakeRegistry::start(), Machine::new());
    registry.publish("acme/kit", "1.0.0", FILES);
    registry.guard(Guard::Basic(SECRET.into()));
    let store = FaultServer::start(|_| Reply::bytes("application/octet-stream", "1"));
    let client = as_ada(&machine, &registry);
    let loaded = manifest(&client, "acme/kit").await.unwrap();
    registry.script(
        "/blobs/",
        Reply::redirect(&format!("{}/x?sig=1", store.url())),
    );
    assert_eq!(read_of(&client, &loaded, "a").await.unwrap(), b"1");
    let asked = store.requests();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), None);
}

#[tokio::test]
async fn a_token_server_that_is_down_is_an_outage_and_no_refusal() {
    let (registry, machine) = (FakeRegistry::start(), Machine::new());
    registry.publish("acme/kit", "1.0.0", FILES);
    let gone = TokenServer::start(300);
    registry.guard(gone.guard());
    drop(gone);
    let client = machine.client(&registry.host(), |overrides| {
        overrides.metadata_timeout = Some(Duration::from_secs(5));
    });
    let error = manifest(&client, "acme/kit").await.unwrap_err();
    assert!(error.is_outage(), "{error}");
}

/// Notes a login as `docker login` does.
fn log_in(machine: &Machine, registry: &FakeRegistry, entry: &Value) -> PathBuf {
    let path = machine.path().join("config.json");
    let json = json!({"auths": {registry.host(): entry}});
    fs::write(&path, json.to_string()).unwrap();
    path
}

/// The registry as a source, with the login that is in a file like docker's.
fn with_file(machine: &Machine, registry: &FakeRegistry, entry: &Value) -> OciSource {
    let path = log_in(machine, registry, entry);
    let host = registry.host();
    OciSource::new(OciSettings {
        endpoint: host.parse().unwrap(),
        logins: LoginChain::new(None, None, LoginFiles::at(vec![path]), &host, ""),
        http: HttpClient::new(&HttpSettings::default()).unwrap(),
    })
    .unwrap()
}

#[tokio::test]
async fn a_token_request_that_is_led_to_another_host_takes_no_login_along() {
    let (registry, machine) = (FakeRegistry::start(), Machine::new());
    registry.publish("acme/kit", "1.0.0", FILES);
    let stranger = FaultServer::start(|_| Reply::json(&json!({"token": "of a stranger"})));
    let there = format!("{}/token", stranger.url());
    let tokens = FaultServer::start(move |_| Reply::redirect(&there).with_status(307));
    let realm = format!("{}/token", tokens.url());
    registry.guard(Guard::Bearer(realm, Arc::default()));
    let bundle = "acme/kit".parse().unwrap();
    let deadline = || Deadline::after(Duration::from_secs(30));

    // In the body of a POST.
    let source = with_file(
        &machine,
        &registry,
        &json!({"identitytoken": "very-secret"}),
    );
    let error = source.versions(&bundle, deadline()).await.unwrap_err();
    assert!(!error.to_string().contains("very-secret"), "{error}");
    assert_eq!(tokens.requests()[0].method, "POST");
    assert_eq!(stranger.requests().len(), 0);

    // In a header.
    let source = with_file(&machine, &registry, &json!({"auth": "YWRhOnNlY3JldA=="}));
    source.versions(&bundle, deadline()).await.unwrap_err();
    let shown: Vec<_> = tokens
        .requests()
        .iter()
        .map(|r| r.header("authorization").map(str::to_owned))
        .collect();
    assert!(shown.contains(&Some(SECRET.to_owned())), "{shown:?}");
    assert!(
        stranger
            .requests()
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
}

#[tokio::test]
async fn a_login_that_changes_in_dockers_file_is_nobodys_error() {
    for bearer in [false, true] {
        let (registry, machine) = (FakeRegistry::start(), Machine::new());
        let tokens = TokenServer::start(300);
        registry.publish("acme/kit", "1.0.0", FILES);
        let admit = |login: &str| {
            *tokens.wants.lock().unwrap() = Some(login.to_owned());
            tokens.revoke();
            registry.guard(match bearer {
                true => tokens.guard(),
                false => Guard::Basic(login.to_owned()),
            });
        };
        admit(SECRET);
        let before = json!({"auth": SECRET.trim_start_matches("Basic ")});
        let source = with_file(&machine, &registry, &before);
        let version = "acme/kit@1.0.0".parse().unwrap();
        let deadline = || Deadline::after(Duration::from_secs(30));
        source.manifest(&version, deadline()).await.unwrap();

        admit(CHANGED);
        let after = json!({"auth": CHANGED.trim_start_matches("Basic ")});
        log_in(&machine, &registry, &after);
        source.manifest(&version, deadline()).await.unwrap();
    }
}
