//! Mirrors: asked first, believed never; and an API beside an OCI registry.

use super::fake::Guard;
use super::fault_server::{FaultServer, Reply};
use musherfs::credentials::docker::{LoginChain, LoginFiles};
use musherfs::reference::Selector;
use musherfs::source::Source;
use musherfs::source::api::{ApiSettings, ApiSource};
use musherfs::source::breaker::{BreakerState, Guarded};
use musherfs::source::http::{HttpClient, HttpSettings};
use musherfs::source::oci::{Artifacts, Beside, Named, NamedSettings, OciSettings, OciSource};
use serde_json::json;

use super::*;

const FILES: &[(&str, &[u8])] = &[("a", b"right"), ("b", b"also right")];

/// An origin and a mirror with the same bundle.
fn pair() -> (FakeRegistry, FakeRegistry) {
    let (origin, mirror) = (FakeRegistry::start(), FakeRegistry::start());
    origin.publish("acme/kit", "1.0.0", FILES);
    mirror.publish("acme/kit", "1.0.0", FILES);
    (origin, mirror)
}

fn mirrored(machine: &Machine, origin: &FakeRegistry, mirrors: &[String]) -> Client {
    machine.client(&origin.host(), |overrides| {
        let parsed = mirrors.iter().map(|text| value::mirror(text).unwrap());
        overrides.mirrors = parsed.collect();
        overrides.content_timeout = Some(Duration::from_secs(8));
    })
}

#[tokio::test]
async fn content_comes_from_the_mirror_and_names_from_the_origin() {
    let (origin, mirror) = pair();
    let machine = Machine::new();
    let client = mirrored(&machine, &origin, &[mirror.host()]);
    assert_eq!(read(&client, "acme/kit", "a").await.unwrap(), b"right");
    assert_eq!(origin.count("/blobs/"), 1, "the config");
    let asked = mirror.requests();
    assert_eq!(asked.len(), 1, "{asked:?}");
    // As containerd tells a mirror of several registries which one is meant.
    let ns = format!("ns={}", origin.host().replace(':', "%3A"));
    assert!(asked[0].target.contains(&ns), "{}", asked[0].target);
}

#[tokio::test]
async fn whatever_is_wrong_with_a_mirror_the_next_source_is_asked_in_the_same_read() {
    for (why, reply) in [
        ("wrong bytes", Reply::bytes("x", "wrong")),
        ("not there", Reply::status(404)),
        (
            "login page",
            Reply::bytes("text/html", "<html>log in</html>"),
        ),
        ("broken", Reply::status(500)),
        ("forbidden", Reply::status(403)),
        ("reset", Reply::reset()),
        ("stuck", Reply::hang()),
        (
            "slow",
            Reply::bytes("x", "right").trickle(1, Duration::from_secs(2)),
        ),
        ("cut off", Reply::bytes("x", "right").truncated(3)),
    ] {
        let (origin, mirror) = pair();
        let machine = Machine::new();
        let client = mirrored(&machine, &origin, &[mirror.host()]);
        mirror.script("/blobs/", reply);
        let content = read(&client, "acme/kit", "a").await;
        assert_eq!(content.unwrap(), b"right", "{why}");
        // One that lies or is down is left alone for a moment.
        let content = read(&client, "acme/kit", "b").await;
        assert_eq!(content.unwrap(), b"also right", "{why}");
        let expected = match why {
            "not there" | "forbidden" => 2,
            _ => 1,
        };
        assert_eq!(mirror.count("/blobs/"), expected, "{why}");
    }
}

#[tokio::test]
async fn mirrors_are_asked_in_their_order() {
    let (origin, first) = pair();
    let (_, second) = pair();
    first.script("/blobs/", Reply::status(404));
    let down = {
        let gone = FakeRegistry::start();
        gone.host()
    };
    let machine = Machine::new();
    let hosts = [down, first.host(), second.host()];
    let client = mirrored(&machine, &origin, &hosts);
    assert_eq!(read(&client, "acme/kit", "a").await.unwrap(), b"right");
    assert_eq!(first.count("/blobs/"), 1);
    assert_eq!(second.count("/blobs/"), 1);
    assert_eq!(origin.count("/blobs/"), 1, "the config");
}

#[tokio::test]
async fn a_mirror_serves_what_the_origin_no_longer_can() {
    let (origin, mirror) = pair();
    let machine = Machine::new();
    let client = mirrored(&machine, &origin, &[mirror.host()]);
    manifest(&client, "acme/kit@1.0.0").await.unwrap();
    let host = origin.host();
    drop((client, origin));
    // The manifest is cached; its content is not.
    let client = machine.client(&host, |overrides| {
        overrides.mirrors = vec![value::mirror(&mirror.host()).unwrap()];
    });
    assert_eq!(
        read(&client, "acme/kit@1.0.0", "a").await.unwrap(),
        b"right"
    );
}

#[tokio::test]
async fn a_mirror_resolves_only_if_it_is_told_to() {
    let (origin, mirror) = pair();
    mirror.publish("acme/kit", "2.0.0", &[("a", b"newer")]);
    let machine = Machine::new();
    let client = mirrored(&machine, &origin, &[format!("{}#resolve", mirror.host())]);
    assert_eq!(read(&client, "acme/kit", "a").await.unwrap(), b"newer");
    assert_eq!(origin.requests().len(), 0);
    // What it lacks is not absent.
    origin.publish("acme/other", "1.0.0", FILES);
    assert_eq!(read(&client, "acme/other", "a").await.unwrap(), b"right");
}

#[tokio::test]
async fn no_login_of_the_origin_goes_to_a_mirror() {
    let (origin, mirror) = pair();
    let login = "Basic YWRhOnNlY3JldA==";
    origin.guard(Guard::Basic(login.into()));
    mirror.guard(Guard::Basic(login.into()));
    let machine = Machine::new();
    let password = machine.path().join("password");
    std::fs::write(&password, "secret").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&password, mode).unwrap();
    let client = machine.client(&origin.host(), |overrides| {
        overrides.mirrors = vec![value::mirror(&mirror.host()).unwrap()];
        overrides.oci_user = Some("ada".into());
        overrides.oci_password_file = Some(password);
    });
    assert_eq!(read(&client, "acme/kit", "a").await.unwrap(), b"right");
    assert_eq!(mirror.count("/blobs/"), 1);
    assert!(
        mirror
            .requests()
            .iter()
            .all(|r| r.header("authorization").is_none())
    );
}

#[tokio::test]
async fn a_mirror_may_have_everything_below_a_prefix() {
    let (origin, mirror) = (FakeRegistry::start(), FakeRegistry::start());
    origin.publish("team/acme/kit", "1.0.0", FILES);
    mirror.publish("proxy/team/acme/kit", "1.0.0", FILES);
    let machine = Machine::new();
    let client = machine.client(&format!("{}/team", origin.host()), |overrides| {
        let text = format!("oci=http://{}/proxy", mirror.host());
        overrides.mirrors = vec![value::mirror(&text).unwrap()];
    });
    assert_eq!(read(&client, "acme/kit", "a").await.unwrap(), b"right");
    assert_eq!(mirror.count("/v2/proxy/team/acme/kit/blobs/"), 1);
}

/// An API that resolves one version, and names where its artifact is.
fn api(oci_ref: Option<&str>, digest: &str, with_list: bool) -> FaultServer {
    let layers: Vec<_> = FILES
        .iter()
        .map(|(path, bytes)| {
            serde_json::json!({"assetId": "", "logicalPath": path, "assetType": "prompt",
                "contentSha256": musherfs::digest::Digest::of(bytes).hex(),
                "sizeBytes": bytes.len()})
        })
        .collect();
    let manifest = with_list.then(|| serde_json::json!({ "layers": layers }));
    let answer = serde_json::json!({"bundleId": "", "versionId": "", "namespace": "acme",
        "slug": "kit", "ref": "acme/kit:1.0.0", "version": "1.0.0", "sourceType": "registry",
        "ociRef": oci_ref, "ociDigest": digest, "state": "published", "manifest": manifest});
    FaultServer::start(move |request| {
        if request.target.contains(":resolve") {
            Reply::json(&answer)
        } else {
            Reply::problem(404, "not-found", "not here")
        }
    })
}

#[tokio::test]
async fn with_both_the_api_resolves_and_content_comes_from_the_oci_registry() {
    for with_list in [true, false] {
        let (origin, _) = pair();
        let digest = origin.publish("acme/kit", "1.0.0", FILES);
        let api = api(None, &digest, with_list);
        let machine = Machine::new();
        let client = machine.client(&origin.host(), |overrides| {
            overrides.api_url = Some(api.url().parse().unwrap());
        });
        assert_eq!(read(&client, "acme/kit", "a").await.unwrap(), b"right");
        assert_eq!(origin.count("/tags/list"), 0);
        assert_eq!(origin.count("/manifests/1.0.0"), 0);
        assert_eq!(origin.count("/manifests/"), usize::from(!with_list));
        assert!(
            api.targets()
                .iter()
                .all(|target| target.contains(":resolve"))
        );
        // Filed as the API's: it resolved them.
        let partition = api.url().replace("http://", "").replace(':', "_");
        assert!(
            machine
                .path()
                .join("cache/manifests")
                .join(partition)
                .is_dir()
        );
    }
}

#[tokio::test]
async fn the_registry_that_an_answer_names_is_asked_for_content() {
    let (origin, _) = pair();
    let digest = origin.publish("acme/kit", "1.0.0", FILES);
    for with_list in [true, false] {
        let name = format!("{}/acme/kit:1.0.0", origin.host());
        let api = api(Some(&name), &digest, with_list);
        let machine = Machine::new();
        let client = machine.client(&origin.host(), |overrides| {
            overrides.oci_registry_url = None;
            overrides.api_url = Some(api.url().parse().unwrap());
        });
        assert_eq!(read(&client, "acme/kit", "a").await.unwrap(), b"right");
        assert!(
            api.targets()
                .iter()
                .all(|target| target.contains(":resolve"))
        );
    }
}

#[tokio::test]
async fn a_cache_in_front_of_an_api_is_asked_first_and_without_the_key() {
    let digest = musherfs::digest::Digest::of(b"x").to_string();
    let origin = api(None, &digest, true);
    let cache = FaultServer::start(|request| {
        if request.target.contains("/assets/a") {
            Reply::bytes("application/octet-stream", "right")
        } else {
            Reply::status(404)
        }
    });
    let machine = Machine::new();
    let client = machine.client("unused.example", |overrides| {
        overrides.oci_registry_url = None;
        overrides.api_url = Some(origin.url().parse().unwrap());
        overrides.mirrors = vec![value::mirror(&cache.url()).unwrap()];
    });
    assert_eq!(read(&client, "acme/kit", "a").await.unwrap(), b"right");
    assert!(
        origin
            .targets()
            .iter()
            .all(|target| target.contains(":resolve"))
    );
    assert!(
        cache
            .requests()
            .iter()
            .all(|r| r.header("authorization").is_none())
    );
}

/// `origin` as it is asked beside an API, and its breaker.
fn guarded(origin: &FakeRegistry) -> (Arc<OciSource>, Arc<Guarded>) {
    let settings = OciSettings {
        endpoint: origin.host().parse().unwrap(),
        logins: LoginChain::default(),
        http: HttpClient::new(&HttpSettings::default()).unwrap(),
    };
    let oci = Arc::new(OciSource::new(settings).unwrap());
    let guard = Arc::new(Guarded::new(Arc::clone(&oci) as Arc<dyn Source>));
    (oci, guard)
}

fn names(api: &FaultServer) -> Arc<ApiSource> {
    let settings = ApiSettings {
        base: api.url().parse().unwrap(),
        keys: KeyChain::default(),
        http: HttpClient::new(&HttpSettings::default()).unwrap(),
    };
    Arc::new(ApiSource::new(settings).unwrap())
}

#[tokio::test]
async fn an_oci_registry_that_hangs_takes_none_of_the_apis_answers_with_it() {
    let (origin, _) = pair();
    origin.script("/v2/", Reply::hang());
    let digest = musherfs::digest::Digest::of(b"x").to_string();
    let api = api(None, &digest, false);
    let (oci, guard) = guarded(&origin);
    let names = names(&api);
    let both = Beside::new(names, Artifacts::In { oci, guard });
    let bundle = "acme/kit".parse().unwrap();
    for _ in 0..20 {
        let deadline = Deadline::after(Duration::from_secs(4));
        let answer = both.resolve(&bundle, &Selector::Latest, deadline).await;
        assert_eq!(answer.unwrap().version.as_deref(), Some("1.0.0"));
    }
    // It was noticed, and is asked again only now and then.
    assert!(origin.requests().len() < 10, "{}", origin.requests().len());
}

#[tokio::test]
async fn an_artifact_that_takes_long_to_come_closes_its_registry_for_nobody() {
    let (origin, _) = pair();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5000);
    tar.append_data(&mut header, "skills/a.md", &[b'a'; 5000][..])
        .unwrap();
    let tar = tar.into_inner().unwrap();
    let kind = "application/vnd.oci.image.layer.v1.tar";
    let mut layer = origin.layer("skills", &tar, kind);
    layer["annotations"]["io.deis.oras.content.unpack"] = json!("true");
    let artifact = origin.artifact(&[layer]);
    let digest = origin.manifest("acme/kit", "2.0.0", &artifact);
    // Longer than one answer may wait for it.
    let slow = Reply::bytes(kind, tar.clone()).trickle(512, Duration::from_millis(300));
    let archive = musherfs::digest::Digest::of(&tar).to_string();
    origin.script(&archive, slow);

    let api = api(None, &digest, false);
    let (oci, guard) = guarded(&origin);
    let artifacts = Artifacts::In {
        oci,
        guard: Arc::clone(&guard),
    };
    let both = Beside::new(names(&api), artifacts);
    let bundle = "acme/kit".parse().unwrap();
    let resolve = || {
        let deadline = Deadline::after(Duration::from_secs(6));
        both.resolve(&bundle, &Selector::Latest, deadline)
    };
    assert!(resolve().await.unwrap().layers.is_none());
    assert_eq!(guard.state(), BreakerState::Closed);
    // It went on coming, once.
    let mut layers = None;
    for _ in 0..10 {
        layers = layers.or(resolve().await.unwrap().layers);
    }
    assert_eq!(layers.unwrap()[0].path, "skills/a.md");
    assert_eq!(origin.count(&archive), 1);
}

#[tokio::test]
async fn one_bundle_that_is_broken_closes_its_registry_for_nobody() {
    let (origin, _) = pair();
    let digest = origin.publish("acme/kit", "1.0.0", FILES);
    let name = format!("{}/acme/kit:1.0.0", origin.host());

    let lost = musherfs::digest::Digest::of(FILES[0].1);
    origin.script(&format!("/blobs/{lost}"), Reply::status(404));
    let listed = api(Some(&name), &digest, true);
    let machine = Machine::new();
    let client = machine.client(&origin.host(), |overrides| {
        overrides.oci_registry_url = None;
        overrides.api_url = Some(listed.url().parse().unwrap());
    });
    read(&client, "acme/kit", "a").await.unwrap_err();
    assert_eq!(read(&client, "acme/kit", "b").await.unwrap(), FILES[1].1);

    origin.script("/blobs/", Reply::status(404));
    let unlisted = api(Some(&name), &digest, false);
    let named = Arc::new(Named::new(NamedSettings {
        api: unlisted.url().parse().unwrap(),
        keys: KeyChain::default(),
        files: LoginFiles::default(),
        http: HttpClient::new(&HttpSettings::default()).unwrap(),
    }));
    let both = Beside::new(names(&unlisted), Artifacts::Named(Arc::clone(&named)));
    let deadline = Deadline::after(Duration::from_secs(20));
    let bundle = "acme/kit".parse().unwrap();
    let document = both.resolve(&bundle, &Selector::Latest, deadline).await;
    assert!(document.unwrap().layers.is_none());
    assert_eq!(named.guarded()[0].state(), BreakerState::Closed);
}
