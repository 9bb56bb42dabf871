//! What is copied to hosts: the worker and the libraries that it needs, by the hash of
//! their contents.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::sync::OnceCell;

/// The file in an unpacked archive's folder that says that it is one.
const MARK: &str = "RELEASE";

/// Digits of the hash that name the folder on a host.
const DIGITS: usize = 32;

/// An archive of `make dist`, packed or unpacked.
#[derive(Debug)]
pub struct Archive {
    /// The hash of its contents: what has the same one is copied once.
    pub hash: String,
    origin: PathBuf,
    packed: OnceCell<Arc<File>>,
}

impl Archive {
    /// The archive `given`, else the unpacked one in which `program` lies.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn find(given: Option<PathBuf>, program: &Path) -> Result<Self> {
        let origin = match given {
            Some(path) => path,
            None => unpacked(program)?,
        };
        let hash = hash(&origin).with_context(|| format!("cannot read the archive `{}`", origin.display()))?;
        Ok(Self { hash, origin, packed: OnceCell::new() })
    }

    /// Its gzipped tar, with one folder in which all lies. A folder is packed at the first
    /// call, into a file without a name.
    ///
    /// # Errors
    /// It cannot be read, or there is no room in the folder of temporary files.
    pub async fn file(&self) -> Result<Arc<File>> {
        let made = self.packed.get_or_try_init(|| async {
            let origin = self.origin.clone();
            let made = tokio::task::spawn_blocking(move || packed(&origin)).await?;
            made.map(Arc::new).with_context(|| format!("cannot pack the archive `{}`", self.origin.display()))
        });
        made.await.cloned()
    }
}

/// The folder of the archive in which `program` lies.
fn unpacked(program: &Path) -> Result<PathBuf> {
    let folder = program.parent().filter(|bin| bin.ends_with("bin")).and_then(Path::parent);
    match folder {
        Some(folder) if folder.join(MARK).is_file() => Ok(folder.to_owned()),
        _ => bail!(
            "`{}` does not lie in an unpacked archive: make one with `make dist`, and name the .tar.gz with --archive, or start the \
             coordinator of the unpacked one",
            program.display()
        ),
    }
}

/// The files of an unpacked archive that workers need, in a fixed order: name and path.
fn files(folder: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut names = vec![PathBuf::from("bin/worker")];
    let libraries = folder.join("lib");
    if libraries.is_dir() {
        let entries = std::fs::read_dir(&libraries)?.collect::<std::io::Result<Vec<_>>>()?;
        names.extend(entries.into_iter().map(|entry| Path::new("lib").join(entry.file_name())));
        names.sort();
    }
    Ok(names.into_iter().map(|name| (name.clone(), folder.join(name))).collect())
}

fn hash(origin: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    if origin.is_dir() {
        for (name, path) in files(origin)? {
            let file = File::open(&path).with_context(|| format!("`{}`", path.display()))?;
            hasher.update(format!("{} {}\n", name.display(), file.metadata()?.len()).as_bytes());
            hasher.update_reader(file)?;
        }
    } else {
        hasher.update_reader(File::open(origin)?)?;
    }
    Ok(hasher.finalize().to_hex()[..DIGITS].to_owned())
}

fn packed(origin: &Path) -> Result<File> {
    if !origin.is_dir() {
        return Ok(File::open(origin)?);
    }
    // The libraries are large, and networks fast.
    let mut tar = tar::Builder::new(GzEncoder::new(tempfile::tempfile()?, Compression::fast()));
    tar.mode(tar::HeaderMode::Deterministic);
    for (name, path) in files(origin)? {
        tar.append_path_with_name(&path, Path::new("ringleader").join(name)).with_context(|| format!("`{}`", path.display()))?;
    }
    let mut file = tar.into_inner()?.finish()?;
    file.flush()?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    fn release(folder: &Path, library: &str) -> PathBuf {
        for (name, text) in
            [("bin/worker", "worker"), ("bin/coordinator", "me"), ("lib/libx.so", library), ("docs/a.md", "much"), (MARK, "r")]
        {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder.join("bin/coordinator")
    }

    #[tokio::test]
    async fn a_folder_is_packed_with_what_workers_need() {
        let [one, same, other] = [0; 3].map(|_| tempfile::tempdir().unwrap());
        let archive = Archive::find(None, &release(one.path(), "x")).unwrap();
        assert_eq!(archive.hash, Archive::find(None, &release(same.path(), "x")).unwrap().hash);
        assert_ne!(archive.hash, Archive::find(None, &release(other.path(), "y")).unwrap().hash);
        let file = archive.file().await.unwrap();
        let mut tar = tar::Archive::new(GzDecoder::new(&*file));
        let mut found = Vec::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.push((name, text));
        }
        let expected = [("ringleader/bin/worker", "worker"), ("ringleader/lib/libx.so", "x")];
        assert_eq!(found, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let program = release(dir.path(), "x");
        std::fs::remove_file(dir.path().join(MARK)).unwrap();
        let said = Archive::find(None, &program).unwrap_err().to_string();
        assert!(said.contains("make dist") && said.contains("--archive"), "{said}");
        let said = format!("{:#}", Archive::find(Some("/none.tar.gz".into()), &program).unwrap_err());
        assert!(said.contains("/none.tar.gz") && said.contains("No such file"), "{said}");
    }
}
