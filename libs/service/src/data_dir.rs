use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use headwater_types::Remedy;

/// The layout that this version writes. It is raised when older versions can no longer read it.
const FORMAT: u32 = 1;

/// With so many random bytes no two directories have the same identity.
const ID_BYTES: usize = 8;

/// A directory that belongs to this process for as long as this value lives.
///
/// Its file `FORMAT` has the version of the layout, `LOCK` the process that owns it, and
/// `DIRECTORY` its identity, which processes that read the directory tell to others.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    id: String,
    // The system releases the lock when the process ends, however it ends.
    _lock: File,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("{} is in use by process {pid}; stop it, or choose another directory", .path.display())]
    InUse { path: PathBuf, pid: String },

    #[error(
        "{} has format {found}, and this version knows formats up to {FORMAT}; \
         use the version that wrote it, or a newer one", .path.display()
    )]
    Newer { path: PathBuf, found: u32 },

    #[error(
        "{} is not a Headwater data directory: {detail}; choose another one", .path.display()
    )]
    Foreign { path: PathBuf, detail: String },

    #[error("cannot use {} as data directory; see that this user may write there, or choose another one", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl DataDirError {
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::InUse { .. } | Self::Newer { .. } | Self::Foreign { .. } | Self::Io { .. } => {
                Remedy::Correct
            }
        }
    }
}

impl DataDir {
    /// Locks the directory, and creates it if there is none.
    ///
    /// # Errors
    ///
    /// Another process has it, a newer version wrote it, it holds files that are not ours, or the
    /// file system refuses.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, DataDirError> {
        let path = path.into();
        let io = |source| DataDirError::Io { path: path.clone(), source };
        if !path.exists() {
            fs::create_dir_all(&path).map_err(io)?;
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                sync(parent).map_err(io)?;
            }
        }
        let format = path.join("FORMAT");
        if !format.exists()
            && let Some(stranger) = stranger(&path).map_err(io)?
        {
            let detail = format!("it holds {stranger} and no FORMAT file");
            return Err(DataDirError::Foreign { path, detail });
        }
        let lock = lock(&path)?;
        match fs::read_to_string(&format) {
            Ok(text) => check(&path, &text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write_whole(&path, "FORMAT", &format!("headwater {FORMAT}")).map_err(io)?
            }
            Err(error) => return Err(io(error)),
        }
        let id = match read_id(&path)? {
            Some(id) => id,
            None => {
                let id = new_id().map_err(io)?;
                write_whole(&path, "DIRECTORY", &id).map_err(io)?;
                id
            }
        };
        Ok(Self { path, id, _lock: lock })
    }

    /// The identity of the directory: made at random when it was created, and never changed.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The [`DataDir::id`] of a directory that another process may own; `None` if there is none yet.
///
/// # Errors
///
/// A newer version wrote the directory, its files are not ours, or it cannot be read.
pub fn directory_id(path: &Path) -> Result<Option<String>, DataDirError> {
    match fs::read_to_string(path.join("FORMAT")) {
        Ok(text) => check(path, &text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DataDirError::Io { path: path.to_owned(), source }),
    }
    read_id(path)
}

fn read_id(path: &Path) -> Result<Option<String>, DataDirError> {
    match fs::read_to_string(path.join("DIRECTORY")) {
        Ok(text) => {
            let id = text.trim();
            if id.len() == ID_BYTES * 2 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Ok(Some(id.to_owned()));
            }
            let detail = format!("its DIRECTORY file says {id:?}");
            Err(DataDirError::Foreign { path: path.to_owned(), detail })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DataDirError::Io { path: path.to_owned(), source }),
    }
}

fn new_id() -> io::Result<String> {
    let mut bytes = [0; ID_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn lock(path: &Path) -> Result<File, DataDirError> {
    let io = |source| DataDirError::Io { path: path.to_owned(), source };
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
    let mut file = options.open(path.join("LOCK")).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // The owner may have taken the lock and not written its number yet.
            let _ = file.read_to_string(&mut text);
            let pid = if text.trim().is_empty() { "(unknown)" } else { text.trim() };
            return Err(DataDirError::InUse { path: path.to_owned(), pid: pid.to_owned() });
        }
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
    writeln!(file, "{}", std::process::id()).map_err(io)?;
    Ok(file)
}

fn check(path: &Path, text: &str) -> Result<(), DataDirError> {
    let found = text.trim().strip_prefix("headwater ").and_then(|number| number.parse().ok());
    match found {
        Some(FORMAT) => Ok(()),
        Some(found) if found > FORMAT => Err(DataDirError::Newer { path: path.to_owned(), found }),
        Some(_) | None => {
            let detail = format!("its FORMAT file says {:?}", text.trim());
            Err(DataDirError::Foreign { path: path.to_owned(), detail })
        }
    }
}

/// Writes a file completely or not at all. After a crash the next start writes it again.
fn write_whole(path: &Path, name: &str, line: &str) -> io::Result<()> {
    let new = path.join(format!("{name}.new"));
    let mut file = File::create(&new)?;
    writeln!(file, "{line}")?;
    file.sync_all()?;
    fs::rename(&new, path.join(name))?;
    sync(path)
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// A file that Headwater does not put into a directory before FORMAT.
fn stranger(path: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        // `lost+found` is what a fresh file system has in its root.
        if !["LOCK", "FORMAT.new", "lost+found"].iter().any(|own| name == *own) {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_is_refused_and_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/data");
        let first = DataDir::open(&path).unwrap();

        let refused = DataDir::open(&path).unwrap_err();

        let expected = format!(
            "{} is in use by process {}; stop it, or choose another directory",
            path.display(),
            std::process::id()
        );
        assert_eq!(refused.to_string(), expected);
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn a_newer_format_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::open(dir.path()).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("FORMAT")).unwrap(), "headwater 1\n");
        fs::write(dir.path().join("FORMAT"), "headwater 2\n").unwrap();

        let refused = DataDir::open(dir.path()).unwrap_err();

        assert!(matches!(refused, DataDirError::Newer { found: 2, .. }), "{refused}");
        assert!(refused.to_string().contains("use the version that wrote it"), "{refused}");
        assert_eq!(fs::read_to_string(dir.path().join("FORMAT")).unwrap(), "headwater 2\n");
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "x").unwrap();

        let refused = DataDir::open(dir.path()).unwrap_err();

        assert!(refused.to_string().contains("it holds thesis.tex"), "{refused}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_crash_before_the_format_was_written_is_recovered() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("LOCK"), "7\n").unwrap();
        fs::write(dir.path().join("FORMAT.new"), "headw").unwrap();

        DataDir::open(dir.path()).unwrap();

        assert_eq!(fs::read_to_string(dir.path().join("FORMAT")).unwrap(), "headwater 1\n");
    }

    #[test]
    fn a_directory_keeps_the_name_that_it_was_given_and_others_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        assert_eq!(directory_id(&one).unwrap(), None, "there is no directory yet");
        let owner = DataDir::open(&one).unwrap();
        let id = owner.id().to_owned();
        assert_eq!(directory_id(&one).unwrap().as_deref(), Some(id.as_str()), "while it is locked");
        drop(owner);
        assert_eq!(DataDir::open(&one).unwrap().id(), id, "after a restart");
        assert_ne!(DataDir::open(&two).unwrap().id(), id);

        // A directory of an earlier version has no identity, and a crash may leave half of a file.
        fs::remove_file(two.join("DIRECTORY")).unwrap();
        fs::write(two.join("DIRECTORY.new"), "ab").unwrap();
        assert_eq!(directory_id(&two).unwrap(), None);
        assert_eq!(DataDir::open(&two).unwrap().id().len(), 16);
        fs::write(two.join("DIRECTORY"), "../../etc").unwrap();
        assert!(directory_id(&two).unwrap_err().to_string().contains("its DIRECTORY file says"));
    }
}
