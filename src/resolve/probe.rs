//! Names that programs look for in every directory they pass.
//!
//! Agents, shells and build tools walk up from their working directory and ask each one on the way
//! for `AGENTS.md`, `package.json`, `Makefile`. No registry publishes namespaces or bundles of such
//! names (its schema has no dots and no capitals), so unless one is known to be there, the answer is
//! "no" and costs no request.

/// What comes after the last dot of a file name that is looked for.
const ENDINGS: &str = "\
    bazel bzl cfg cjs conf cs csproj css env exe gemspec go gradle html inf ini ipynb java \
    js json json5 jsonc kts lock lua md mdc mdx mjs mod nix php properties py rb rs sh sln \
    so sum toml ts tsx txt work xml yaml yml zip";

/// Whole names that are looked for. `HEAD` is git's first sign of a bare repository. Names that a
/// bundle may have (`makefile`, `refs`) are not here.
const NAMES: &str = "\
    BUILD CVS Dockerfile Gemfile GNUmakefile HEAD Jenkinsfile Justfile LICENSE Makefile Pipfile \
    Podfile Procfile RCS README SCCS WORKSPACE _darcs node_modules";

/// Whether programs look for `name` wherever they are.
pub(super) fn is_probe(name: &str) -> bool {
    let is_in = |list: &str, word: &str| list.split(' ').any(|entry| entry == word);
    is_in(NAMES, name)
        || name
            .rsplit_once('.')
            .is_some_and(|(_, ending)| is_in(ENDINGS, &ending.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_probes_and_names_of_bundles_are_not() {
        for probe in ["AGENTS.md", "package.json", "Makefile", "HEAD", "a.TOML"] {
            assert!(is_probe(probe), "{probe}");
        }
        for name in ["acme", "code-review", "v1.2", "md", "a.b", "makefile"] {
            assert!(!is_probe(name), "{name}");
        }
    }
}
