//! Datasets that are published as one archive.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, bail};
use common::ui::counter;
use flate2::read::GzDecoder;

use super::download;

/// The file beside the unpacked data that says of which archive it is.
const UNPACKED: &str = ".archive-sha256";

/// A dataset in a .tar.gz file.
#[derive(Debug, Clone, Copy)]
pub(super) struct ArchiveSet {
    pub name: &'static str,
    /// Addresses of the folder that has the archive, tried in turn.
    pub sites: &'static [&'static str],
    pub archive: &'static str,
    /// Of the archive, as TensorFlow Datasets pins it.
    pub sha256: &'static str,
    /// How a config reads what is unpacked.
    pub data: &'static str,
}

impl ArchiveSet {
    /// Puts the dataset into `into`; what is there and of this archive stays.
    pub(super) fn get(&self, into: &Path, from: Option<&str>) -> Result<()> {
        fs::create_dir_all(into).with_context(|| format!("could not create `{}`", into.display()))?;
        if fs::read_to_string(into.join(UNPACKED)).is_ok_and(|found| found.trim() == self.sha256) {
            return Ok(());
        }
        let own = into.join(self.archive);
        if !own.exists() || check(&own, self.sha256).is_err() {
            self.fetch(into, from).with_context(|| {
                format!(
                    "could not fetch {}: put {} into `{}` yourself, or name a folder or site that has it with --from; what is there is checked and kept",
                    self.name,
                    self.archive,
                    into.display()
                )
            })?;
        }
        unpack(&own, into)?;
        fs::write(into.join(UNPACKED), self.sha256).with_context(|| format!("could not write to `{}`", into.display()))?;
        _ = fs::remove_file(&own);
        Ok(())
    }

    /// Gets the archive itself, whole and checked.
    fn fetch(&self, into: &Path, from: Option<&str>) -> Result<()> {
        let own = into.join(self.archive);
        let sites: Vec<&str> = match from {
            Some(site) if site.starts_with("http://") || site.starts_with("https://") => vec![site.trim_end_matches('/')],
            Some(folder) => {
                let found = Path::new(folder).join(self.archive);
                check(&found, self.sha256)?;
                fs::copy(&found, &own).with_context(|| format!("could not write `{}`", own.display()))?;
                return Ok(());
            }
            None => self.sites.to_vec(),
        };
        let mut first = None;
        for site in sites {
            let part = into.join(format!("{}.part", self.archive));
            let url = format!("{site}/{}", self.archive);
            let fetched = download::resume(&url, &part).with_context(|| format!("could not fetch {url}")).and_then(|()| {
                check(&part, self.sha256).inspect_err(|_| _ = fs::remove_file(&part))?;
                fs::rename(&part, &own).with_context(|| format!("could not write `{}`", own.display()))
            });
            match fetched {
                Ok(()) => return Ok(()),
                Err(e) => _ = first.get_or_insert(e),
            }
        }
        Err(first.unwrap_or_else(|| anyhow::anyhow!("no site is known that has it")))
    }
}

/// Compares the digest of a file.
fn check(path: &Path, expected: &str) -> Result<()> {
    let file = File::open(path).with_context(|| format!("could not open `{}`", path.display()))?;
    let found = download::sha256(file).with_context(|| format!("could not read `{}`", path.display()))?;
    if found != expected {
        bail!("`{}` is not what it should be: it has the SHA-256 {found}, not {expected}", path.display());
    }
    Ok(())
}

/// Unpacks a .tar.gz into `into`, without the folder in which such archives hold
/// everything if it is the only one.
fn unpack(archive: &Path, into: &Path) -> Result<()> {
    let failed = || format!("could not unpack `{}`", archive.display());
    let work = tempfile::tempdir_in(into).with_context(failed)?;
    let bar = counter("unpacking", None);
    let mut tar = tar::Archive::new(GzDecoder::new(File::open(archive).with_context(failed)?));
    for entry in tar.entries().with_context(failed)? {
        // Nothing is written outside the folder, whatever names the archive has.
        entry.and_then(|mut entry| entry.unpack_in(work.path())).with_context(failed)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let content = |folder: &Path| fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>();
    let mut files = content(work.path()).with_context(failed)?;
    if let [only] = &files[..]
        && only.is_dir()
    {
        files = content(only).with_context(failed)?;
    }
    for file in files {
        let to = into.join(file.file_name().unwrap_or_default());
        // Left by an attempt that was interrupted.
        if to.is_dir() {
            fs::remove_dir_all(&to).with_context(failed)?;
        }
        fs::rename(&file, &to).with_context(failed)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use data_encoding::HEXLOWER;
    use digest::Digest;
    use sha2::Sha256;

    use super::*;

    /// A .tar.gz with these files, and its digest.
    fn archive(path: &Path, files: &[(&str, &str)]) -> &'static str {
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(File::create(path).unwrap(), flate2::Compression::fast()));
        for (name, content) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap();
        HEXLOWER.encode(&Sha256::digest(fs::read(path).unwrap())).leak()
    }

    fn set(sha256: &'static str) -> ArchiveSet {
        ArchiveSet { name: "pets", sites: &[], archive: "pets.tgz", sha256, data: "" }
    }

    #[test]
    fn an_archive_is_checked_unpacked_without_its_outer_folder_and_kept() {
        let (from, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sha256 = archive(&from.path().join("pets.tgz"), &[("pets2/train/cat/1.jpg", "cat"), ("pets2/val/dog/2.jpg", "dog")]);
        let place = from.path().display().to_string();
        set(sha256).get(into.path(), Some(&place)).unwrap();
        assert_eq!(fs::read_to_string(into.path().join("val/dog/2.jpg")).unwrap(), "dog");
        let mut names: Vec<_> = fs::read_dir(into.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".archive-sha256", "train", "val"]);
        // It is there: the place is not looked at again.
        set(sha256).get(into.path(), Some("/nowhere")).unwrap();
    }

    #[test]
    fn another_archive_is_refused_by_its_digest() {
        let (from, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        archive(&from.path().join("pets.tgz"), &[("a", "b")]);
        let error = format!("{:#}", set("00").get(into.path(), Some(&from.path().display().to_string())).unwrap_err());
        assert!(error.contains("pets.tgz") && error.contains("SHA-256") && error.contains("--from"), "{error}");
        let error = format!("{:#}", set("00").get(into.path(), None).unwrap_err());
        assert!(error.contains("no site is known"), "{error}");
    }
}
