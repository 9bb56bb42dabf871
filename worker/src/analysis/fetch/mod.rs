//! Fetches and checks public datasets. Files that are already there and pass the check
//! are kept.

mod archive;
mod download;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::ui::counter;
use flate2::read::GzDecoder;

use archive::ArchiveSet;

/// A dataset that consists of four IDX files.
struct IdxSet {
    name: &'static str,
    /// Where the .gz files are published, tried in turn. Plain HTTP is enough:
    /// the content is checked against the digests below.
    sites: &'static [&'static str],
    /// Debian's package of it and the folder in that package, if there is one.
    package: Option<(&'static str, &'static str)>,
    classes: &'static [&'static str],
    /// File and SHA-256 of its uncompressed content.
    files: [(&'static str, &'static str); 4],
}

/// Xiao, Rasul, Vollgraf: "Fashion-MNIST: a Novel Image Dataset for Benchmarking
/// Machine Learning Algorithms", 2017.
const FASHION_MNIST: IdxSet = IdxSet {
    name: "fashion-mnist",
    sites: &["http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"],
    package: Some(("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist")),
    classes: &["T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"],
    files: [
        ("train-images-idx3-ubyte.gz", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        ("train-labels-idx1-ubyte.gz", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        ("t10k-images-idx3-ubyte.gz", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        ("t10k-labels-idx1-ubyte.gz", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    ],
};

/// LeCun, Cortes, Burges: "The MNIST Database of Handwritten Digits", 1998.
const MNIST: IdxSet = IdxSet {
    name: "mnist",
    sites: &[
        "http://yann.lecun.com/exdb/mnist",
        "http://ossci-datasets.s3.amazonaws.com/mnist",
        "http://storage.googleapis.com/cvdf-datasets/mnist",
    ],
    package: None,
    classes: &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    files: [
        ("train-images-idx3-ubyte.gz", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        ("train-labels-idx1-ubyte.gz", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        ("t10k-images-idx3-ubyte.gz", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        ("t10k-labels-idx1-ubyte.gz", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ],
};

const KNOWN: [&IdxSet; 2] = [&FASHION_MNIST, &MNIST];

/// Krizhevsky: "Learning Multiple Layers of Features from Tiny Images", 2009, and ten
/// classes of ImageNet that fast.ai chose, with a shorter side of 320 or 160 pixels.
const ARCHIVES: [ArchiveSet; 4] = [
    ArchiveSet {
        name: "cifar10",
        sites: &["https://www.cs.toronto.edu/~kriz"],
        archive: "cifar-10-binary.tar.gz",
        sha256: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        data: "kind = \"cifar\"",
    },
    ArchiveSet {
        name: "cifar100",
        sites: &["https://www.cs.toronto.edu/~kriz"],
        archive: "cifar-100-binary.tar.gz",
        sha256: "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        data: "kind = \"cifar\"",
    },
    ArchiveSet {
        name: "imagenette",
        sites: &["https://s3.amazonaws.com/fast-ai-imageclas"],
        archive: "imagenette2-320.tgz",
        sha256: "5020a9130cea0348272823cb12d2db7e981c6f2afa3dce71ccd5b8013005c55e",
        data: "kind = \"images\"",
    },
    ArchiveSet {
        name: "imagenette-160",
        sites: &["https://s3.amazonaws.com/fast-ai-imageclas"],
        archive: "imagenette2-160.tgz",
        sha256: "88daccb09b6fce93f45e6c09ddeb269cce705549e6bff322092a2a5a11489863",
        data: "kind = \"images\"",
    },
];

/// Puts `dataset` into the folder `into`. `from`, a folder with its files or a site
/// that has them, is used instead of the known places.
pub fn get(dataset: &str, into: &Path, from: Option<&str>) -> Result<()> {
    if let Some(set) = ARCHIVES.iter().find(|s| s.name == dataset) {
        set.get(into, from)?;
        common::ui::print_stdout(&format!("{dataset} is in {}: {} in [data]", into.display(), set.data));
        return Ok(());
    }
    let Some(set) = KNOWN.into_iter().find(|s| s.name == dataset) else {
        let names: Vec<&str> = KNOWN.iter().map(|s| s.name).chain(ARCHIVES.iter().map(|s| s.name)).collect();
        bail!("`{dataset}` is not a dataset that can be fetched: these are: {}", names.join(", "));
    };
    fs::create_dir_all(into).with_context(|| format!("could not create `{}`", into.display()))?;
    if !complete(set, into) {
        fetch(set, into, from).with_context(|| {
            format!(
                "could not fetch {dataset}: put its four .gz files into `{}` yourself, or name a folder or site that has them with --from; what is there is checked and kept",
                into.display()
            )
        })?;
    }
    for (file, _) in set.files {
        let _ = fs::remove_file(into.join(file).with_extension("gz.part"));
    }
    // classes.txt is written last: its presence means that the other files are there
    // and checked.
    let names = set.classes.join("\n") + "\n";
    fs::write(into.join("classes.txt"), names).with_context(|| format!("could not write to `{}`", into.display()))?;
    common::ui::print_stdout(&format!("{dataset} is in {}", into.display()));
    Ok(())
}

/// Tries one place after the other. If all fail, returns the error of the first.
fn fetch(set: &IdxSet, into: &Path, from: Option<&str>) -> Result<()> {
    match from {
        Some(url) if url.starts_with("http://") || url.starts_with("https://") => return from_site(set, url.trim_end_matches('/'), into),
        Some(url) if url.contains("://") => {
            bail!("`{url}` cannot be read: a folder or an http address can (the content is checked by its digest)")
        }
        Some(folder) => return from_folder(set, Path::new(folder), into),
        None => {}
    }
    let mut first = None;
    for site in set.sites {
        match from_site(set, site, into) {
            Ok(()) => return Ok(()),
            Err(e) => {
                tracing::info!("{e:#}; trying the next place");
                first.get_or_insert(e);
            }
        }
    }
    let first = first.unwrap_or_else(|| anyhow::anyhow!("no site is known that has it"));
    let Some((package, folder)) = set.package else { return Err(first) };
    from_debian(set, package, folder, into).with_context(|| format!("{first:#}"))
}

fn from_folder(set: &IdxSet, folder: &Path, into: &Path) -> Result<()> {
    for (file, digest) in set.files {
        let found = folder.join(file);
        check(&found, digest)?;
        fs::copy(&found, into.join(file)).with_context(|| format!("could not write to `{}`", into.display()))?;
    }
    Ok(())
}

fn complete(set: &IdxSet, folder: &Path) -> bool {
    set.files.iter().all(|(file, digest)| check(&folder.join(file), digest).is_ok())
}

/// Compares the digest of a .gz file's content.
fn check(path: &Path, expected: &str) -> Result<()> {
    let file = File::open(path).with_context(|| format!("could not open `{}`", path.display()))?;
    let found = download::sha256(GzDecoder::new(file)).with_context(|| format!("`{}` is not a whole gzip file", path.display()))?;
    if found != expected {
        bail!("`{}` is not what it should be: its content has the SHA-256 {found}, not {expected}", path.display());
    }
    Ok(())
}

fn from_site(set: &IdxSet, site: &str, into: &Path) -> Result<()> {
    for (file, digest) in set.files {
        let path = into.join(file);
        if check(&path, digest).is_ok() {
            continue;
        }
        let part = path.with_extension("gz.part");
        let url = format!("{site}/{file}");
        download::resume(&url, &part).with_context(|| format!("could not fetch {url}"))?;
        if let Err(e) = check(&part, digest) {
            let _ = fs::remove_file(&part);
            return Err(e);
        }
        fs::rename(&part, &path).with_context(|| format!("could not write `{}`", path.display()))?;
    }
    Ok(())
}

/// Unpacks Debian's package without installing it: no root needed.
fn from_debian(set: &IdxSet, package: &str, folder: &str, into: &Path) -> Result<()> {
    let work = tempfile::tempdir().context("no temporary folder")?;
    let bar = counter(&format!("fetching Debian's {package}"), None);
    bar.enable_steady_tick(Duration::from_millis(100));
    let download = || run(Command::new("apt-get").args(["download", package]).current_dir(work.path()));
    if let Err(first) = download() {
        // A new system may not have its package lists yet; root can fetch them.
        run(Command::new("apt-get").args(["update", "-qq"])).and_then(|()| download()).map_err(|_| first)?;
    }
    let archive =
        files_in(work.path())?.into_iter().find(|p| p.extension().is_some_and(|e| e == "deb")).context("apt-get left no package behind")?;
    bar.set_message("unpacking");
    let unpacked = work.path().join("unpacked");
    run(Command::new("dpkg").arg("-x").arg(&archive).arg(&unpacked))?;
    from_folder(set, &unpacked.join(folder), into)?;
    bar.finish_and_clear();
    Ok(())
}

fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("could not run {name}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed: {}", text.lines().last().unwrap_or("it gave no reason"));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_is_known_by_its_uncompressed_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gz");
        let mut gz = flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::fast());
        gz.write_all(b"abc").unwrap();
        gz.finish().unwrap();
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        check(&path, digest).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
        assert!(format!("{:#}", check(&path, digest).unwrap_err()).contains("x.gz"));
    }

    #[test]
    fn a_folder_with_the_wrong_files_is_refused_by_name() {
        let (from, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let place = from.path().display().to_string();
        let missing = format!("{:#}", get("mnist", into.path(), Some(&place)).unwrap_err());
        assert!(missing.contains("train-images-idx3-ubyte.gz") && missing.contains("--from"), "{missing}");
        let mut gz = flate2::write::GzEncoder::new(File::create(from.path().join(MNIST.files[0].0)).unwrap(), flate2::Compression::fast());
        gz.write_all(b"abc").unwrap();
        gz.finish().unwrap();
        let wrong = format!("{:#}", get("mnist", into.path(), Some(&place)).unwrap_err());
        assert!(wrong.contains("not what it should be"), "{wrong}");
        assert!(!into.path().join("classes.txt").exists());
        assert!(format!("{:#}", get("mnist", into.path(), Some("ftp://example.org")).unwrap_err()).contains("http address"));
    }

    #[test]
    fn an_unknown_dataset_names_the_known_ones() {
        let folder = tempfile::tempdir().unwrap();
        assert!(get("mnst", folder.path(), None).unwrap_err().to_string().contains("fashion-mnist"));
    }
}
