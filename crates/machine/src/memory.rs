//! Records that are forgotten with the process: for a machine that nobody but its maker is to find.

use std::path::Path;

use crate::backend::{KernelIdentity, RecordError, RecordedResource, Recorder, ResourceId, ResourceKind};

/// A [`Recorder`] without a registry. What is still in it when the process dies is left behind.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MemoryRecorder(Vec<RecordedResource>);

impl Recorder for MemoryRecorder {
    fn intend(&mut self, resources: &[(ResourceKind, &Path)]) -> Result<Vec<ResourceId>, RecordError> {
        let first = self.0.last().map_or(1, |last| last.id.0 + 1);
        let ids: Vec<_> = (first..).take(resources.len()).map(ResourceId).collect();
        for (id, (kind, place)) in ids.iter().zip(resources) {
            self.0.push(RecordedResource { id: *id, kind: *kind, place: place.to_path_buf(), identity: None });
        }
        Ok(ids)
    }

    fn made(&mut self, made: &[(ResourceId, KernelIdentity)]) -> Result<(), RecordError> {
        for (id, identity) in made {
            self.0.iter_mut().filter(|one| one.id == *id).for_each(|one| one.identity = Some(*identity));
        }
        Ok(())
    }

    fn gone(&mut self, gone: &[ResourceId]) -> Result<(), RecordError> {
        self.0.retain(|one| !gone.contains(&one.id));
        Ok(())
    }

    fn all(&self) -> Result<Vec<RecordedResource>, RecordError> {
        Ok(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_intended_is_made_and_gone() {
        let mut recorder = MemoryRecorder::default();
        let (one, two) = (Path::new("/one"), Path::new("/two"));
        let ids = recorder.intend(&[(ResourceKind::Folder, one), (ResourceKind::File, two)]).expect("memory");
        let identity = KernelIdentity::Inode { device: 1, inode: 2 };
        recorder.made(&[(ids[1], identity)]).expect("memory");
        recorder.gone(&ids[..1]).expect("memory");
        let left = recorder.all().expect("memory");
        assert_eq!(
            left,
            [RecordedResource { id: ids[1], kind: ResourceKind::File, place: two.into(), identity: Some(identity) }]
        );
        assert_ne!(recorder.intend(&[(ResourceKind::Folder, one)]).expect("memory")[0], ids[1]);
    }
}
