//! A volume that is to grow: whether there is room, and its replicas' sizes after it.

use std::collections::BTreeMap;

use sheaf_api::longhorn::EngineSpec;

use super::super::place::{Disk, can_grow};
use super::{SOON, Work, number};

impl Work<'_> {
    /// Why it cannot grow as it is asked to.
    pub(super) fn no_room(&self, spec: &EngineSpec) -> Option<String> {
        let more = number(&self.seen.volume.spec.size).checked_sub(number(&spec.volume_size))?;
        let disks: BTreeMap<&str, &Disk> =
            self.seen.places.iter().flat_map(|p| p.disks.iter().map(|d| (d.uuid.as_str(), d))).collect();
        self.mine.iter().filter(|_| more > 0).find_map(|r| {
            let disk = disks.get(r.spec.disk_id.as_str())?;
            let why = can_grow(disk, more, self.seen.settings).err()?;
            Some(format!("disk {} of node {}: {why}", disk.name, r.spec.node_id))
        })
    }

    /// Lets it grow, if there is room.
    pub(super) fn size(&mut self, spec: &mut EngineSpec, attached: bool) {
        let seen = self.seen;
        let (wanted, has) = (number(&seen.volume.spec.size), number(&spec.volume_size));
        let status = seen.engine.and_then(|e| e.status.as_ref());
        let now = status.map_or(0, |s| number(&s.current_size));
        self.plan.status.expansion_required = Some(wanted > has || (now > 0 && now < wanted));
        if wanted > has {
            match self.no_room(spec) {
                Some(why) => {
                    self.condition("ExpansionRefused", "True", "InsufficientStorage", &why);
                    self.plan.again = Some(SOON * 6);
                }
                None => {
                    self.condition("ExpansionRefused", "False", "", "");
                    if attached {
                        spec.volume_size.clone_from(&seen.volume.spec.size);
                    }
                }
            }
        }
        for replica in self.mine.clone() {
            if now > number(&replica.spec.volume_size) {
                let mut changed = replica.spec.clone();
                changed.volume_size = now.to_string();
                self.change(replica, changed);
            }
        }
    }
}
