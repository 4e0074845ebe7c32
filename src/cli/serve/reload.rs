//! The policy file, looked at again and again: what changed in it takes effect without a restart.
//!
//! The file is read whole and compared, for a ConfigMap's volume swaps a link above it and leaves the
//! file's own times alone. A text is taken when two looks in a row saw it, so that a file that is just
//! being written is not taken by half. Whatever is wrong with it, the policy in force stays.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

use super::wait;
use crate::{
    admin::Health,
    cli::{self, PolicyText},
    webhook::Desk,
};

/// How often the file is looked at.
const PERIOD: Duration = Duration::from_millis(500);

/// What the file held at a look, or why it could not be read.
type Look = Result<String, String>;

/// The policy file of a server.
#[derive(Debug)]
pub(super) struct PolicyFile {
    path: PathBuf,
    /// What was acted on last.
    taken: Look,
    /// What was seen last.
    seen: Look,
}

impl PolicyFile {
    /// A file of which that text is in force.
    pub(super) fn new(path: &Path, text: String) -> Self {
        Self {
            path: path.to_owned(),
            taken: Ok(text.clone()),
            seen: Ok(text),
        }
    }

    /// Looks at the file. Some when there is something new to act on.
    fn look(&mut self) -> Option<&Look> {
        let look = cli::read_policy(&self.path);
        let settled = look == self.seen;
        self.seen = look;
        if !settled || self.seen == self.taken {
            return None;
        }
        self.taken.clone_from(&self.seen);
        Some(&self.taken)
    }

    /// Takes over what changes until the server stops.
    pub(super) async fn follow(
        mut self,
        desk: Arc<Desk>,
        health: Arc<Health>,
        mut stopped: watch::Receiver<bool>,
    ) {
        while !wait(&mut stopped, PERIOD).await {
            let shown = self.path.display().to_string();
            let Some(look) = self.look() else { continue };
            let read = look.clone().and_then(|text| {
                PolicyText {
                    name: &shown,
                    text: &text,
                }
                .read((desk.clock)())
            });
            match read {
                Ok(policy) => {
                    let hash = policy.hash().to_owned();
                    for line in policy.reminders((desk.clock)()) {
                        tracing::warn!("{line}");
                    }
                    if *hash == *desk.policy.load().hash() {
                        tracing::info!(hash, "the policy file says what is in force");
                    } else {
                        tracing::info!(
                            hash,
                            mode = policy.mode.as_str(),
                            "another policy is in force"
                        );
                        desk.adopt(policy);
                    }
                    desk.metrics.policy_read(true);
                    health.policy(Ok(hash));
                }
                Err(error) => {
                    let hash = desk.policy.load().hash().to_owned();
                    tracing::error!(hash, "keeping the policy in force: {error}");
                    desk.metrics.policy_read(false);
                    health.policy(Err(error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_text_is_taken_when_it_has_settled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.yaml");
        fs::write(&path, "a").unwrap();
        let mut file = PolicyFile::new(&path, "a".to_owned());
        assert_eq!(file.look(), None, "nothing changed");
        fs::write(&path, "b").unwrap();
        assert_eq!(file.look(), None, "it may still be written");
        fs::write(&path, "bc").unwrap();
        assert_eq!(file.look(), None, "it was");
        assert_eq!(file.look(), Some(&Ok("bc".to_owned())));
        assert_eq!(file.look(), None, "once");
        fs::remove_file(&path).unwrap();
        assert_eq!(file.look(), None);
        assert!(matches!(file.look(), Some(Err(_))), "it is gone");
        assert_eq!(file.look(), None, "said once");
        fs::write(&path, "bc").unwrap();
        file.look();
        assert_eq!(file.look(), Some(&Ok("bc".to_owned())), "it is back");
    }

    #[test]
    fn a_link_that_is_swapped_above_the_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        for (version, text) in [("1", "a"), ("2", "b")] {
            fs::create_dir(folder.path().join(version)).unwrap();
            fs::write(folder.path().join(version).join("policy.yaml"), text).unwrap();
        }
        let data = folder.path().join("..data");
        std::os::unix::fs::symlink("1", &data).unwrap();
        let path = folder.path().join("policy.yaml");
        std::os::unix::fs::symlink("..data/policy.yaml", &path).unwrap();
        let mut file = PolicyFile::new(&path, "a".to_owned());
        assert_eq!(file.look(), None);
        let next = folder.path().join("..next");
        std::os::unix::fs::symlink("2", &next).unwrap();
        fs::rename(&next, &data).unwrap();
        file.look();
        assert_eq!(file.look(), Some(&Ok("b".to_owned())));
    }
}
