//! The private folder: only its owner looks in, and its files appear whole.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::failure::Failure;
use crate::signals::is_ignored;

/// Removed with this value, unless it is left or was there before.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    own: Option<TempDir>,
    written: RefCell<BTreeSet<String>>,
}

/// Lies in each folder of ours: in no other one is anything written or removed.
const MARK: &str = ".tharsis-exec";

impl Folder {
    /// A new one: in `XDG_RUNTIME_DIR`, which is in memory and gone with the session, or else among the temporary ones, as
    /// for who is to go on without the session.
    pub(crate) fn temporary() -> Result<Self, Failure> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let runtime = runtime.filter(|path| path.is_absolute() && !is_ignored(Signal::HUP));
        // It may be another user's, or of a session that is over.
        let made = runtime.and_then(|path| Self::within(&path).ok());
        made.map_or_else(|| Self::within(&temporary()), Ok)
    }

    fn within(above: &Path) -> Result<Self, Failure> {
        let made = tempfile::Builder::new()
            .prefix("tharsis-exec-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(above)
            .and_then(|made| match made.path().to_str() {
                Some(_) => Ok(made),
                // Clients are told of it as text, in which it would be another.
                None => Err(io::Error::other("its path is not UTF-8")),
            })
            .map_err(|source| {
                let what = format!("no folder can be made in {}", above.display());
                Failure::file(&what, source)
            })?;
        let folder = Self {
            path: made.path().to_owned(),
            own: Some(made),
            written: RefCell::default(),
        };
        folder.write(MARK, "")?;
        Ok(folder)
    }

    /// One of before, if it is still there; nobody else may have made it or look in.
    pub(crate) fn again(path: &Path) -> Result<Option<Self>, Failure> {
        let is_ours = |found: &fs::Metadata| {
            let owner = rustix::process::geteuid().as_raw();
            found.is_dir() && found.uid() == owner && found.mode() & 0o777 == 0o700
        };
        let found = match fs::symlink_metadata(path) {
            Ok(found) if !is_ours(&found) => {
                Err(io::Error::other("not a folder of this user's alone"))
            }
            Ok(_) if !path.join(MARK).exists() => Err(io::Error::other(
                "not made by tharsis-exec env; unset it to get a new one",
            )),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(error),
        };
        let what = format!("THARSIS_EXEC_FOLDER={}", path.display());
        found.map_err(|source| Failure::file(&what, source))?;
        Ok(Some(Self {
            path: path.to_owned(),
            own: None,
            written: RefCell::default(),
        }))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a file of this name is, whether there is one yet or not.
    pub(crate) fn file(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    /// Writes a file, readable by its owner. A reader of the file of before, or of this one, sees all of it.
    pub(crate) fn write(&self, name: &str, content: &str) -> Result<(), Failure> {
        let path = self.path.join(name);
        // A temporary file is its owner's alone from the beginning.
        let written = tempfile::NamedTempFile::new_in(&self.path).and_then(|mut draft| {
            draft.write_all(content.as_bytes())?;
            draft.persist(&path).map_err(|error| error.error)
        });
        match written {
            Ok(_) => {
                self.written.borrow_mut().insert(name.to_owned());
                Ok(())
            }
            Err(source) => Err(Failure::file(&path.display().to_string(), source)),
        }
    }

    /// Removes the files of an earlier time, which were not written again; what somebody else laid there stays.
    pub(crate) fn remove_the_rest(&self) -> Result<(), Failure> {
        let is_ours = |name: &str| {
            let of_an_identity = [".token", ".google.json", ".kubernetes.json"]
                .iter()
                .any(|end| name.starts_with("mi_") && name.ends_with(end));
            of_an_identity || ["aws-config", "aws-credentials", "kubeconfig"].contains(&name)
        };
        let removed = fs::read_dir(&self.path).and_then(|entries| {
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name();
                let name = name.to_str().filter(|name| is_ours(name));
                if name.is_some_and(|name| !self.written.borrow().contains(name)) {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        });
        let what = format!("an earlier token stays in {}", self.path.display());
        removed.map_err(|source| Failure::file(&what, source))
    }

    /// Removes it, if nobody else has.
    pub(crate) fn remove(self) -> Result<(), Failure> {
        let Some(own) = self.own else { return Ok(()) };
        match own.close() {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                let what = format!("{} stays behind, with tokens in it", self.path.display());
                Err(Failure::file(&what, source))
            }
            _ => Ok(()),
        }
    }

    /// Leaves it where it is.
    pub(crate) fn leave(self) {
        if let Some(own) = self.own {
            let _ = own.keep();
        }
    }
}

/// The folder of temporary ones. An empty name would be the folder that we are in.
fn temporary() -> PathBuf {
    let named = std::env::temp_dir();
    if named.as_os_str().is_empty() {
        return "/tmp".into();
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_reads_it_and_it_goes() {
        let folder = Folder::temporary().expect("a folder");
        folder.write("token", "one").expect("written");
        folder.write("token", "two").expect("written");
        let path = folder.path().to_owned();
        let mode = |path: &Path| fs::metadata(path).expect("it is there").mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join("token"))), (0o700, 0o600));
        assert_eq!(
            fs::read_to_string(folder.file("token")).expect("read"),
            "two"
        );
        let count = fs::read_dir(&path).expect("read").count();
        assert_eq!(count, 2, "the mark and no drafts");
        folder.remove().expect("removed");
        assert!(!path.exists());
        let folder = Folder::temporary().expect("a folder");
        fs::remove_dir_all(folder.path()).expect("removed");
        folder.remove().expect("somebody else removed it");
    }

    #[test]
    fn what_is_not_written_again_goes() {
        let folder = Folder::temporary().expect("a folder");
        for name in ["mi_1.token", "mi_2.token", "kubeconfig"] {
            folder.write(name, "one").expect("written");
        }
        for name in ["notes", "github.token", "key.google.json"] {
            fs::write(folder.file(name), "not ours").expect("written");
        }
        let again = Folder::again(folder.path()).expect("it is ours");
        let again = again.expect("it is there");
        again.write("mi_2.token", "two").expect("written");
        again.remove_the_rest().expect("removed");
        let left = |name: &str| Path::new(&folder.file(name)).exists();
        assert_eq!(
            ["mi_1.token", "mi_2.token", "kubeconfig"].map(left),
            [false, true, false]
        );
        assert_eq!(
            ["notes", "github.token", "key.google.json"].map(left),
            [true; 3]
        );
    }

    #[test]
    fn one_of_before_must_be_this_user_s_alone() {
        let folder = Folder::temporary().expect("a folder");
        let again = Folder::again(folder.path()).expect("it is ours");
        again.expect("it is there").remove().expect("left");
        assert!(folder.path().is_dir(), "what was there before stays");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o750)).expect("set");
        let refused = Folder::again(folder.path()).expect_err("others look in");
        assert_eq!(refused.code(), 73);
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("set");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).expect("a link");
        Folder::again(&link).expect_err("somebody may turn it elsewhere");
        fs::remove_file(folder.file(MARK)).expect("removed");
        let refused = Folder::again(folder.path()).expect_err("somebody else's");
        assert_eq!(refused.code(), 73);
        let gone = Folder::again(Path::new("/nowhere")).expect("one may be gone");
        assert!(gone.is_none());
    }
}
