//! Files that are replaced whole, and locks that only their owner can take.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Replaces a file: a reader sees the old or the new one, and the new one is on disk
/// when this returns. The process's umask decides who may read it.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_with_mode(path, bytes, 0o666)
}

/// The same for a file that only its owner may read.
pub fn replace_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_with_mode(path, bytes, 0o600)
}

fn replace_with_mode(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A unique name: in containers, several processes may have the same id and share a
    // folder.
    let mut temporary = tempfile::Builder::new().permissions(Permissions::from_mode(mode)).tempfile_in(folder)?;
    temporary.write_all(bytes)?;
    temporary.as_file().sync_all()?;
    temporary.persist(path)?;
    sync_folder(folder)
}

/// Makes renames and new names in a folder durable.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The user's cache folder. There is no fallback to a shared folder: other users could
/// choose there what is trained on. A path that is not absolute is ignored.
pub fn cache_folder() -> Option<PathBuf> {
    cache_folder_of(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))
}

fn cache_folder_of(named: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    named.and_then(absolute).or_else(|| home.and_then(absolute).map(|home| home.join(".cache")))
}

/// Opens a lock file for its owner alone: any user who can open a file can lock it and
/// keep its owner out.
pub fn open_lock(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).read(true).write(true).truncate(false).mode(0o600).open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        // An older version made it readable for all.
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_the_users_own_or_none() {
        let place = |named: Option<&str>, home: Option<&str>| cache_folder_of(named.map(OsString::from), home.map(OsString::from));
        assert_eq!(place(Some("/cache"), Some("/home/u")), Some("/cache".into()));
        for none in [None, Some(""), Some("cache")] {
            assert_eq!(place(none, Some("/home/u")), Some("/home/u/.cache".into()));
            assert_eq!(place(none, None), None);
            assert_eq!(place(none, Some("")), None);
        }
    }

    #[test]
    fn a_private_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("join");
        std::fs::write(&path, "a longer line than the next").unwrap();
        // A process that has the old file open keeps reading it.
        let mut before = File::open(&path).unwrap();
        replace_private(&path, b"next").unwrap();
        let mut old = String::new();
        io::Read::read_to_string(&mut before, &mut old).unwrap();
        assert_eq!((old.as_str(), std::fs::read_to_string(&path).unwrap().as_str()), ("a longer line than the next", "next"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
