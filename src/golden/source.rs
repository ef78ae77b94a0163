//! A shop's release: the archive or folder its user names, or the official
//! download.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::recipe::SourceArchive;

/// The release cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// What the user named is not there.
    #[error("{setting}={} is not there: name a release archive (.zip, .tar.gz) or a folder", .path.display())]
    Missing {
        /// The setting.
        setting: String,
        /// Its value.
        path: PathBuf,
    },
    /// Nothing was named and the download failed.
    #[error(
        "{setting} is not set and {url} cannot be downloaded ({why}): set {setting} to a release archive or folder"
    )]
    Download {
        /// The setting.
        setting: String,
        /// The official download.
        url: String,
        /// What curl said.
        why: String,
    },
    /// Nothing was named and the recipe knows no download.
    #[error("{setting} is not set: set it to a release archive or folder")]
    Unset {
        /// The setting.
        setting: String,
    },
    /// The archive cannot be unpacked.
    #[error("{} cannot be unpacked: {why}", .path.display())]
    Archive {
        /// Which archive.
        path: PathBuf,
        /// What the unpacker said.
        why: String,
    },
    /// The disk.
    #[error("cannot read {}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A release, unpacked.
#[derive(Debug)]
pub(super) struct Source {
    /// Its folder.
    pub path: PathBuf,
    /// Changes when the release does.
    pub fingerprint: String,
}

/// Finds, downloads and unpacks a release below `work`.
///
/// # Errors
/// [`SourceError`], which says what to set.
pub(super) async fn resolve(
    wanted: &SourceArchive,
    setting: &str,
    work: &Path,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Source, SourceError> {
    let archive =
        if setting.is_empty() { download(wanted, work, say).await? } else { PathBuf::from(setting) };
    let metadata = std::fs::metadata(&archive)
        .map_err(|_| SourceError::Missing { setting: wanted.env.clone(), path: archive.clone() })?;
    if metadata.is_dir() {
        let fingerprint =
            fingerprint(&archive).map_err(|source| SourceError::Io { path: archive.clone(), source })?;
        return Ok(Source { path: archive, fingerprint });
    }
    let fingerprint =
        hash_file(&archive).map_err(|source| SourceError::Io { path: archive.clone(), source })?;
    let into = work.join("source");
    unpack(&archive, &into).await?;
    // A PrestaShop release archive holds the shop as an archive once more.
    let inner = into.join("prestashop.zip");
    if inner.is_file() {
        let shop = work.join("shop");
        unpack(&inner, &shop).await?;
        return Ok(Source { path: shop, fingerprint });
    }
    Ok(Source { path: into, fingerprint })
}

async fn download(
    wanted: &SourceArchive,
    work: &Path,
    say: &(dyn Fn(&str) + Sync),
) -> Result<PathBuf, SourceError> {
    let Some(url) = &wanted.download else {
        return Err(SourceError::Unset { setting: wanted.env.clone() });
    };
    let failed = |why: String| SourceError::Download { setting: wanted.env.clone(), url: url.clone(), why };
    say(&format!("downloading {url}"));
    let path = work.join("download.zip");
    let output = Command::new("curl")
        .args(["--fail", "--silent", "--show-error", "--location", "--proto", "=https"])
        .args(["--connect-timeout", "15", "--max-time", "1800", "--output"])
        .arg(&path)
        .arg(url)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| failed(format!("curl: {error}")))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    if let Some(expected) = &wanted.sha256 {
        let found = sha256(&path).map_err(|source| SourceError::Io { path: path.clone(), source })?;
        if found != expected.to_ascii_lowercase() {
            return Err(failed(format!("its SHA-256 is {found}, the recipe says {expected}")));
        }
    }
    Ok(path)
}

fn sha256(path: &Path) -> io::Result<String> {
    use sha2::Digest as _;
    let mut hasher = sha2::Sha256::new();
    io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn hash_file(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Names, sizes and times of a folder's files: enough to see a change, and a
/// thousand times faster than reading them.
fn fingerprint(folder: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let mut entries = std::fs::read_dir(&folder)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let metadata = entry.metadata()?;
            hasher.update(entry.path().as_os_str().as_encoded_bytes());
            hasher.update(&metadata.len().to_le_bytes());
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                let time = metadata.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                hasher.update(&time.as_nanos().to_le_bytes());
            }
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Unpacks with the program that knows the format: both are on every host that
/// builds images, or one package away.
async fn unpack(archive: &Path, into: &Path) -> Result<(), SourceError> {
    std::fs::create_dir_all(into).map_err(|source| SourceError::Io { path: into.to_owned(), source })?;
    let zip = archive.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("zip"));
    let mut command = Command::new(if zip { "unzip" } else { "tar" });
    if zip {
        command.arg("-q").arg(archive).arg("-d").arg(into);
    } else {
        command.arg("-xf").arg(archive).arg("-C").arg(into);
    }
    let failed = |why: String| SourceError::Archive { path: archive.to_owned(), why };
    let output = command.stdin(Stdio::null()).output().await.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(download: Option<&str>) -> SourceArchive {
        SourceArchive { env: "SHOP_SRC".into(), download: download.map(str::to_owned), sha256: None }
    }

    #[tokio::test]
    async fn a_folder_is_taken_as_it_is_and_a_change_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("index.php"), "1").unwrap();
        let setting = dir.path().display().to_string();
        let work = tempfile::tempdir().unwrap();
        let one = resolve(&wanted(None), &setting, work.path(), &|_| {}).await.unwrap();
        assert_eq!(one.path, dir.path());
        std::fs::write(dir.path().join("index.php"), "12").unwrap();
        let two = resolve(&wanted(None), &setting, work.path(), &|_| {}).await.unwrap();
        assert_ne!(one.fingerprint, two.fingerprint);
    }

    #[tokio::test]
    async fn what_is_missing_is_named_with_the_setting_to_change() {
        let work = tempfile::tempdir().unwrap();
        let error = resolve(&wanted(None), "", work.path(), &|_| {}).await.unwrap_err();
        assert_eq!(error.to_string(), "SHOP_SRC is not set: set it to a release archive or folder");
        let error = resolve(&wanted(None), "/nowhere/x.zip", work.path(), &|_| {}).await.unwrap_err();
        assert!(error.to_string().starts_with("SHOP_SRC=/nowhere/x.zip is not there"), "{error}");
        let broken = work.path().join("broken.tar.gz");
        std::fs::write(&broken, "no archive").unwrap();
        let error = resolve(&wanted(None), broken.to_str().unwrap(), work.path(), &|_| {}).await.unwrap_err();
        assert!(matches!(error, SourceError::Archive { .. }), "{error}");
    }
}
