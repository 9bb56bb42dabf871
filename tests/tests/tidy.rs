//! Invariants of the sources themselves.

use std::path::{Path, PathBuf};

use cluster_tests::{Running, project};

/// Every source file of the workspace.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for krate in ["common", "worker", "coordinator", "tests"] {
        collect(&project().join(krate), &mut found);
    }
    assert!(found.len() > 50, "only {} sources were found", found.len());
    found
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())).flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn files_stay_under_400_lines() {
    for path in sources() {
        let lines = read(&path).lines().count();
        assert!(lines < 400, "{} has {lines} lines: cut it where the subject changes", path.display());
    }
}

/// Decisions know no socket, no clock and no runtime.
#[test]
fn pure_files_stay_pure() {
    let pure = [
        "common/src/plan.rs",
        "common/src/seed.rs",
        "common/src/ring/schedule.rs",
        "common/src/ring/bucket.rs",
        "common/src/ring/encoding.rs",
        "coordinator/src/membership.rs",
        "coordinator/src/membership/events.rs",
        "coordinator/src/membership/forming.rs",
        "coordinator/src/membership/returning.rs",
        "coordinator/src/limits.rs",
        "common/src/audit.rs",
        "common/src/ring/fixed.rs",
        "common/src/ring/sim.rs",
        "common/src/ring/sim/engine.rs",
        "worker/src/schedule.rs",
        "worker/src/job.rs",
    ];
    for path in pure {
        let text = read(&project().join(path));
        for word in ["tokio", "quinn", "Instant::now", "SystemTime", "thread_rng", "std::fs", "async fn"] {
            assert!(!text.contains(word), "{path} names {word}");
        }
    }
}

#[test]
fn only_one_module_knows_libtorch_and_common_knows_no_tensor() {
    for path in sources() {
        let text = read(&path);
        let name = path.display().to_string();
        // "tch::" also ends "fetch::".
        let names = |line: &str, word: &str| {
            let before = line.find(word).map(|at| line[..at].chars().next_back());
            before.is_some_and(|c| c.is_none_or(|c| !c.is_alphanumeric() && c != '_'))
        };
        let knows = |word: &str| text.lines().any(|l| !l.trim_start().starts_with("//") && names(l, word));
        if !name.ends_with("worker/src/device/libtorch.rs") && !name.ends_with("tests/tests/tidy.rs") {
            assert!(!knows("tch::") && !knows("burn_tch"), "{name} names libtorch's types");
        }
        if name.contains("/common/") || name.contains("/coordinator/") {
            assert!(!knows("burn::"), "{name} names burn");
        }
    }
}

#[test]
fn every_config_is_valid() {
    let folder = project().join("configs");
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{e}")).flatten() {
        let path = entry.path().display().to_string();
        let text = read(&entry.path());
        assert!(text.starts_with('#'), "{path} should begin by saying what it is");
        // A path that does not exist is found after the config itself is fine.
        let checked = Running::start("coordinator", &["check", &path]).wait();
        assert!(checked.status.code() != Some(2), "{path}: {}", checked.stderr);
        seen += 1;
    }
    assert!(seen >= 11);
}

#[test]
fn documents_name_only_what_exists() {
    let makefile = read(&project().join("Makefile"));
    for document in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "docs/course.md",
        "docs/failure.md",
        "benches/README.md",
        "benches/NOTES.md",
    ] {
        let text = read(&project().join(document));
        for word in text.split(|c: char| c.is_whitespace() || "`()[]".contains(c)) {
            if (word.starts_with("configs/") || word.starts_with("docs/")) && word.len() > "configs/".len() {
                assert!(project().join(word).exists(), "{document} names {word}, which does not exist");
            }
        }
        let folder = project().join(document).parent().map(Path::to_owned).unwrap_or_default();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|l| !l.contains("://")) {
            assert!(folder.join(link).exists(), "{document} links to {link}, which does not exist");
        }
        for target in text
            .split("`make ")
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !c.is_ascii_lowercase() && c != '-').next())
            .filter(|t| !t.is_empty())
        {
            assert!(makefile.contains(&format!("\n{target}:")), "{document} speaks of `make {target}`, which the Makefile lacks");
        }
    }
}
