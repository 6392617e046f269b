//! The cached bundles and versions whose names start with what was typed.

use crate::cache::Cache;
use crate::client::host_of;
use crate::config::{Config, Overrides};
use crate::paths::Directories;
use crate::reference::{BundleId, HostId};

/// More choices than this help nobody.
const MOST: usize = 500;

/// Namespaces while one is typed, then bundles, then, after an `@`, versions. Nothing on any error.
pub(super) fn starting_with(typed: &str) -> Vec<String> {
    let find = || {
        let directories = Directories::from_env().ok()?;
        let config = Config::load(&directories, Overrides::default()).ok()?;
        let host = host_of(&config).ok()?;
        Some(search(&Cache::new(directories.cache), &host, typed))
    };
    find().unwrap_or_default()
}

fn search(cache: &Cache, host: &HostId, typed: &str) -> Vec<String> {
    if let Some((bundle, _)) = typed.split_once('@') {
        let Ok(bundle) = bundle.parse::<BundleId>() else {
            return Vec::new();
        };
        let mut versions = cache.versions(host, &bundle);
        versions.sort_unstable();
        let names = versions
            .iter()
            .rev()
            .map(|version| format!("{bundle}@{version}"));
        return names
            .filter(|name| name.starts_with(typed))
            .take(MOST)
            .collect();
    }
    let (wanted, has_slash) = match typed.split_once('/') {
        Some((namespace, _)) => (namespace, true),
        None => (typed, false),
    };
    let mut names = Vec::new();
    for namespace in cache.namespaces(host) {
        if has_slash && namespace.as_str() == wanted {
            let bundles = cache.bundles(host, &namespace);
            names.extend(bundles.iter().map(|slug| format!("{namespace}/{slug}")));
        } else if !has_slash && namespace.as_str().starts_with(wanted) {
            names.push(format!("{namespace}/"));
        }
    }
    names.retain(|name| name.starts_with(typed));
    names.sort_unstable();
    names.truncate(MOST);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_step_by_step_from_the_cache() {
        let cache = Cache::new(
            concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/fixtures/cache/tools/python"
            )
            .into(),
        );
        let host: HostId = "api.musher.dev".parse().unwrap();
        let search = |typed| search(&cache, &host, typed);
        assert_eq!(search(""), ["acme/"]);
        assert_eq!(search("ac"), ["acme/"]);
        assert_eq!(search("acme/"), ["acme/kit"]);
        assert_eq!(search("acme/kit@"), ["acme/kit@1.2.0"]);
        assert_eq!(search("acme/kit@1."), ["acme/kit@1.2.0"]);
        for nothing in [
            "x",
            "acme/x",
            "acme/kit@2",
            "@",
            "/",
            "..@",
            "acme/kit@1.2.0/x",
        ] {
            assert!(search(nothing).is_empty(), "{nothing}");
        }
    }
}
