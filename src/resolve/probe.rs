//! Names that programs look for in every directory they pass.
//!
//! Agents, shells and build tools walk up from their working directory and ask each one on the way
//! for `AGENTS.md`, `package.json`, `Makefile`. No registry publishes namespaces or bundles of such
//! names, so unless one is known to be there, the answer is "no" and costs no request.
//!
//! A dot alone makes no file: OCI registries have repositories such as `next.js`, which only a request
//! can tell from a file where there is no catalogue. So where an ending is as good a name as a file's,
//! a name is a probe only if programs look for just that one.

/// What comes after the last dot of a file name that is looked for.
const ENDINGS: &str = "\
    bazel bzl cfg cjs conf csproj css env exe gemspec gradle html inf ini ipynb \
    json json5 jsonc kts lock md mdc mdx mjs mod nix properties sln \
    so sum toml tsx txt work xml yaml yml zip";

/// What comes after the last dot of files and of projects alike (`next.js`, `docs.rs`, `web.py`).
const CODE: &str = "cs go java js lua php py rb rs sh ts";

/// What stands before one of [`CODE`] in names that are looked for; so does whatever has a dot
/// itself (`vite.config.ts`), a capital or an underscore (`Main.java`, `__init__.py`).
const STEMS: &str = "\
    build conanfile config configure conftest gruntfile gulpfile index init install lib main \
    manage mod package setup tasks test tests version webpack wscript";

/// Whole names that are looked for. `HEAD` is git's first sign of a bare repository. Names that a
/// bundle may have (`makefile`, `refs`) are not here.
const NAMES: &str = "\
    BUILD CVS Dockerfile Gemfile GNUmakefile HEAD Jenkinsfile Justfile LICENSE Makefile Pipfile \
    Podfile Procfile RCS README SCCS WORKSPACE _darcs node_modules";

/// Whether programs look for `name` wherever they are.
pub(super) fn is_probe(name: &str) -> bool {
    let is_in = |list: &str, word: &str| list.split(' ').any(|entry| entry == word);
    let is_file = |(stem, ending): (&str, &str)| {
        let odd = |c: char| c == '.' || c == '_' || c.is_ascii_uppercase();
        let ending = ending.to_ascii_lowercase();
        is_in(ENDINGS, &ending)
            || is_in(CODE, &ending) && (stem.contains(odd) || is_in(STEMS, stem))
    };
    is_in(NAMES, name) || name.rsplit_once('.').is_some_and(is_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_probes_and_names_of_bundles_are_not() {
        for probe in [
            "AGENTS.md",
            "package.json",
            "Makefile",
            "HEAD",
            "a.TOML",
            "index.js",
            "setup.py",
            "vite.config.ts",
            "__init__.py",
            "Main.java",
        ] {
            assert!(is_probe(probe), "{probe}");
        }
        let names = "acme code-review v1.2 md a.b makefile next.js docs.rs web.py d3.js index js";
        for name in names.split(' ') {
            assert!(!is_probe(name), "{name}");
        }
    }
}
