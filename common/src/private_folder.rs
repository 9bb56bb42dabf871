//! Folders of this user alone, for files that other users of the machine must neither
//! read nor replace.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The folder where this user's processes find each other, made if it is missing:
/// `$XDG_RUNTIME_DIR/ringleader`, an equivalent one, or one in `home`, a folder in the
/// user's own home that several machines may share. Errors if none of these exists, or
/// if the folder there is not this user's alone.
pub fn runtime(home: Option<PathBuf>) -> io::Result<PathBuf> {
    let own = rustix::process::geteuid().as_raw();
    let named = std::env::var_os("XDG_RUNTIME_DIR");
    let usual = PathBuf::from(format!("/run/user/{own}"));
    let usual = usual.metadata().is_ok_and(|m| m.is_dir() && m.uid() == own).then_some(usual);
    let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // Another user could take a name in the shared temporary folder.
    let path = runtime_place(named, usual, home, &machine)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is neither XDG_RUNTIME_DIR nor a home folder: set one of them"))?;
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    folder(&path).map(|()| path)
}

/// A path that is not absolute is ignored.
fn runtime_place(named: Option<OsString>, usual: Option<PathBuf>, home: Option<PathBuf>, machine: &str) -> Option<PathBuf> {
    let named = named.map(PathBuf::from).filter(|path| path.is_absolute());
    named.or(usual).map(|path| path.join("ringleader")).or_else(|| home.map(|path| path.join(format!("run-{machine}"))))
}

/// Makes a folder that only this user may enter, or checks an existing one: no link,
/// owned by this user, and writable by no other user.
pub fn folder(path: &Path) -> io::Result<()> {
    let refused = |problem: &str| {
        let advice = "remove it, or set XDG_RUNTIME_DIR to a folder of your own";
        Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("`{}` {problem}: {advice}", path.display())))
    };
    let named = |e: io::Error| io::Error::new(e.kind(), format!("could not make the folder `{}`: {e}", path.display()));
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(named(e)),
        _ => {}
    }
    let found = path.symlink_metadata().map_err(named)?;
    if !found.is_dir() {
        return refused("is no folder");
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return refused("belongs to another user");
    }
    if found.mode() & 0o022 != 0 {
        return refused("can be written by others");
    }
    if found.mode() & 0o077 != 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(named)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o777
    }

    #[test]
    fn what_others_could_have_put_there_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ringleader-1");
        folder(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        folder(&path).unwrap();
        // An older version made it readable.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        folder(&path).unwrap();
        assert_eq!(mode(&path), 0o700);

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o770)).unwrap();
        assert!(folder(&path).unwrap_err().to_string().contains("written by others"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(folder(&link).unwrap_err().to_string().contains("is no folder"));
        let missing = folder(&dir.path().join("no/where")).unwrap_err().to_string();
        assert!(missing.contains("no/where"), "{missing}");
        // Only tests that run as root can give a folder away.
        if rustix::process::geteuid().is_root() {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
            std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
            assert!(folder(&path).unwrap_err().to_string().contains("another user"));
        }
    }

    #[test]
    fn places_follow_the_environment() {
        let usual = || Some(PathBuf::from("/run/user/7"));
        let named = |text: &str| Some(OsString::from(text));
        let home = || Some(PathBuf::from("/home/u/.cache/ringleader"));
        assert_eq!(runtime_place(named("/own"), usual(), home(), "a"), Some("/own/ringleader".into()));
        for none in [None, named(""), named("relative/place")] {
            assert_eq!(runtime_place(none, usual(), home(), "a"), Some("/run/user/7/ringleader".into()));
        }
        assert_eq!(runtime_place(None, None, home(), "a"), Some("/home/u/.cache/ringleader/run-a".into()));
        assert_eq!(runtime_place(None, None, None, "a"), None);
    }
}
