use super::*;

fn file(text: &str) -> Result<File> {
    File::parse(Path::new("/etc/musher/config.yaml"), text)
}

fn resolve(flags: Overrides, variables: &[(&str, &str)], yaml: &str) -> Result<Config> {
    let env = |name: &str| {
        let found = variables.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| OsString::from(value))
    };
    Config::resolve(flags, &env, &file(yaml)?)
}

fn problem(variables: &[(&str, &str)], yaml: &str) -> String {
    match resolve(Overrides::default(), variables, yaml) {
        Err(Error::Config(problem)) => problem,
        other => panic!("no configuration error: {other:?}"),
    }
}

#[test]
fn the_defaults_are_as_documented() {
    let config = resolve(Overrides::default(), &[], "").unwrap();
    assert_eq!(config.api_url.as_str(), "https://api.musher.dev/");
    assert_eq!(config.api_url.origin, Origin::Default);
    assert_eq!(*config.readahead, 4 << 20);
    assert_eq!(*config.metadata_timeout, Duration::from_secs(10));
    assert_eq!(*config.content_timeout, Duration::from_secs(60));
    assert!(THREADS.contains(&*config.threads));
    assert!(config.namespaces.is_empty());
    assert_eq!(*config.ca_file, None);
    for switch in [
        &config.insecure_http,
        &config.offline,
        &config.deny_yanked,
        &config.respect_removal,
        &config.local_packs,
        &config.user_xattr,
        &config.allow_other,
    ] {
        assert!(!switch.value);
    }
}

#[test]
fn the_flag_wins_over_the_environment_which_wins_over_the_file() {
    let yaml = "api:\n  url: http://localhost:1/\nmount:\n  readahead: 1K\n  offline: true\n";
    let variables = [
        ("MUSHER_API_URL", "http://localhost:2"),
        ("MUSHERFS_READAHEAD", ""),
    ];
    let flags = Overrides {
        api_url: Some(value::url("http://localhost:3").unwrap()),
        offline: Some(false),
        ..Overrides::default()
    };

    let config = resolve(flags, &variables, yaml).unwrap();
    assert_eq!(config.api_url.as_str(), "http://localhost:3/");
    assert_eq!(config.api_url.origin, Origin::Flag("--api-url"));
    assert_eq!(
        config.offline,
        Setting {
            value: false,
            origin: Origin::Flag("--offline")
        }
    );

    let config = resolve(Overrides::default(), &variables, yaml).unwrap();
    assert_eq!(config.api_url.as_str(), "http://localhost:2/");
    assert_eq!(config.api_url.origin.to_string(), "MUSHER_API_URL");
    assert_eq!(*config.readahead, 1024);
    assert_eq!(
        config.readahead.origin.to_string(),
        "config.yaml, mount.readahead"
    );

    let config = resolve(Overrides::default(), &[], yaml).unwrap();
    assert_eq!(config.api_url.as_str(), "http://localhost:1/");
    assert!(*config.offline);
}

#[test]
fn what_the_go_tools_keep_in_the_file_is_left_alone() {
    let config = resolve(
        Overrides::default(),
        &[],
        "# comment\n\
         api: { url: 'https://registry.test/base/', retries: 3 }\n\
         network: { ca_cert_file: certs/own.pem }\n\
         oci: { registry_url: https://oci.test }\n\
         update: { auto_apply: true, check_interval: 24h }\n\
         experimental: [a, b]\n",
    )
    .unwrap();
    assert_eq!(config.api_url.as_str(), "https://registry.test/base");
    assert_eq!(
        config.ca_file.as_deref(),
        Some(Path::new("/etc/musher/certs/own.pem"))
    );
    assert_eq!(
        config.oci_registry_url.as_ref().unwrap().as_str(),
        "https://oci.test/"
    );
}

#[test]
fn lists_and_numbers_need_no_quotes_in_the_file() {
    let config = resolve(
        Overrides::default(),
        &[],
        "mount:\n  namespaces: [acme, '7', acme]\n  readahead: 0\n  metadata_timeout: 2.5s\n  threads: 3\n  offline: null\n",
    )
    .unwrap();
    let names: Vec<_> = config.namespaces.iter().map(Namespace::as_str).collect();
    assert_eq!(names, ["acme", "7"]);
    assert_eq!(*config.readahead, 0);
    assert_eq!(*config.metadata_timeout, Duration::from_millis(2500));
    assert_eq!(*config.threads, 3);
    assert_eq!(config.offline.origin, Origin::Default);
}

#[test]
fn a_socket_for_numbers_begins_where_the_file_is() {
    let config = resolve(
        Overrides::default(),
        &[],
        "mount: {metrics: \"unix:run/m.sock\", marker: yes}\n",
    )
    .unwrap();
    let socket = value::MetricsAddress::Unix("/etc/musher/run/m.sock".into());
    assert_eq!(*config.metrics, Some(socket));
    assert!(*config.marker);
    let given = [("MUSHERFS_METRICS", "127.0.0.1:9469")];
    let config = resolve(
        Overrides::default(),
        &given,
        "mount: {metrics: \"[::1]:1\"}\n",
    );
    let address = config.unwrap().metrics.value.unwrap();
    assert_eq!(address.to_string(), "http://127.0.0.1:9469/metrics");
}

#[test]
fn an_unknown_setting_below_mount_is_an_error_that_names_it() {
    let problem = problem(&[], "mount:\n  readahaed: 4MiB\n");
    assert!(
        problem.starts_with("/etc/musher/config.yaml: mount.readahaed: no such setting"),
        "{problem}"
    );
    assert!(problem.contains("readahead"), "{problem}");
}

#[test]
fn a_bad_value_is_an_error_that_names_its_place() {
    for (yaml, start) in [
        (
            "mount: {threads: 9}",
            "/etc/musher/config.yaml: mount.threads: ",
        ),
        (
            "mount: {offline: {}}",
            "/etc/musher/config.yaml: mount.offline: ",
        ),
        ("mount: [offline]", "/etc/musher/config.yaml: mount: "),
        (
            "api: {url: api.musher.dev}",
            "/etc/musher/config.yaml: api.url: ",
        ),
        ("- a\n- b\n", "/etc/musher/config.yaml: "),
        ("api: {url: [", "/etc/musher/config.yaml: "),
        (
            "mount: {offline: yes}\nmount: {}\n",
            "/etc/musher/config.yaml: ",
        ),
    ] {
        let problem = problem(&[], yaml);
        assert!(problem.starts_with(start), "{yaml:?}: {problem}");
    }
    for (variable, value) in [
        ("MUSHER_API_URL", "ftp://x"),
        ("MUSHERFS_OFFLINE", "maybe"),
        ("MUSHERFS_NAMESPACES", "acme,.git"),
        ("MUSHERFS_READAHEAD", "lots"),
    ] {
        let problem = problem(&[(variable, value)], "");
        assert!(problem.starts_with(variable), "{problem}");
    }
}

#[test]
fn an_empty_file_and_no_file_are_the_same() {
    let default = resolve(Overrides::default(), &[], "").unwrap();
    for yaml in ["\n", "# nothing\n", "---\n", "mount:\n", "{}"] {
        let config = resolve(Overrides::default(), &[], yaml);
        assert_eq!(config.unwrap(), default, "{yaml:?}");
    }
    let none = File::read(Path::new("/nonexistent/config.yaml")).unwrap();
    assert_eq!(none.get("api.url"), None);
}

#[test]
fn every_setting_below_mount_has_its_name_in_the_table_once() {
    let mut seen = std::collections::BTreeSet::new();
    for names in MOUNT_NAMES {
        assert!(names.file.starts_with("mount."), "{}", names.file);
        assert!(
            names.variable.starts_with("MUSHERFS_"),
            "{}",
            names.variable
        );
        assert!(seen.insert(names.file), "{} twice", names.file);
    }
}

#[test]
fn mount_options_are_settings() {
    let mut overrides = Overrides::default();
    for (name, text) in [
        ("offline", None),
        ("deny-yanked", Some("no")),
        ("namespace", Some("acme")),
        ("namespace", Some("tools")),
        ("readahead", Some("0")),
        ("api_url", Some("http://localhost:1/")),
    ] {
        assert_eq!(overrides.set(name, text), Ok(true), "{name}");
    }
    assert_eq!(overrides.offline, Some(true));
    assert_eq!(overrides.deny_yanked, Some(false));
    assert_eq!(overrides.namespaces.len(), 2);
    assert_eq!(overrides.set("noatime", None), Ok(false));
    assert!(overrides.set("readahead", None).is_err());
    assert!(overrides.set("offline", Some("maybe")).is_err());
}

#[test]
fn relative_paths_are_made_absolute_before_a_daemon_changes_its_directory() {
    let flags = Overrides {
        api_key_file: Some("key".into()),
        ..Overrides::default()
    };
    let config = resolve(flags, &[], "").unwrap();
    assert!(config.api_key_file.as_ref().unwrap().is_absolute());
}

#[test]
fn what_somebody_set_can_be_explained() {
    let flags = Overrides {
        readahead: Some(0),
        ..Overrides::default()
    };
    let config = resolve(flags, &[("MUSHERFS_NAMESPACES", "acme")], "").unwrap();
    let explained: Vec<_> = config
        .explain()
        .into_iter()
        .map(|(name, text, origin)| format!("{name} = {text} ({origin})"))
        .collect();
    assert_eq!(
        explained,
        [
            "namespaces = [acme] (MUSHERFS_NAMESPACES)",
            "readahead = 0 (--readahead)",
        ]
    );
}

#[test]
fn a_directory_can_stand_where_an_oci_registry_is_expected() {
    for path in ["/media/stick", "/with space/ü", "/100%/a?b#c", "/"] {
        let url = value::oci(&format!("oci-layout:{path}")).unwrap();
        assert_eq!(value::layout(&url).as_deref(), Some(Path::new(path)));
    }
    let relative = value::layout(&value::oci("oci-layout:some/where").unwrap()).unwrap();
    assert!(relative.is_absolute() && relative.ends_with("some/where"));
    assert!(value::oci("oci-layout:").is_err());
    let registry = value::oci("localhost:5000").unwrap();
    assert_eq!(registry.as_str(), "http://localhost:5000/");
    assert_eq!(value::layout(&registry), None);
}
