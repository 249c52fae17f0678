//! Keeps the packet filter rules and the forwarding of the management network. Owns what was applied last.

use sheaf_net::nft::{self, Applied, NftError};
use sheaf_net::{Subnet, sysctl};

/// The rules, as they were last applied.
#[derive(Debug, Default)]
pub(super) struct Filter {
    applied: Option<(Subnet, Applied)>,
}

impl Filter {
    /// Makes the rules what they should be. Asks `nft` what they are, which costs a process; so not at every event.
    pub(super) async fn ensure(&mut self, bridge: &str, subnet: Subnet) -> Vec<String> {
        let mut problems = Vec::new();
        match sysctl::ensure_ip_forward() {
            Ok(true) => tracing::info!("switched net.ipv4.ip_forward on, so that guests reach the outside"),
            Ok(false) => {}
            Err(error) => problems.push(super::owner::with_cause(&error)),
        }
        if let Err(error) = self.ensure_table(bridge, subnet).await {
            self.applied = None;
            problems.push(format!("guests cannot reach the outside: {}", super::owner::with_cause(&error)));
            return problems;
        }
        match nft::apply_foreign(bridge).await {
            Ok(changed) => {
                for chain in changed {
                    tracing::info!(%chain, "put rules for guests into the chain of another firewall");
                }
            }
            Err(error) => problems.push(format!(
                "another firewall may drop packets of guests: {}",
                super::owner::with_cause(&error)
            )),
        }
        problems
    }

    async fn ensure_table(&mut self, bridge: &str, subnet: Subnet) -> Result<(), NftError> {
        if let Some((applied_for, applied)) = &self.applied
            && *applied_for == subnet
            && nft::is_intact(applied).await?
        {
            return Ok(());
        }
        self.applied = Some((subnet, nft::apply(bridge, subnet).await?));
        Ok(())
    }
}
