//! The election, purely: whether this coordinator leads, given the lease in the hub.

use crate::hub::Lead;
use modelmeter_common::{Timestamp, wire::sha256_hex};
use std::{fs, net::SocketAddr, time::Duration};
use uuid::Uuid;

/// A coordinator that may lead.
#[derive(Clone, Debug)]
pub struct Candidate {
    holder: String,
    place: String,
    is_alone: bool,
}

impl Candidate {
    /// The process that answers at this address. `is_alone`: it holds a lock by which no other process leads on this hub.
    pub fn new(address: SocketAddr, is_alone: bool) -> Self {
        Self { holder: Uuid::new_v4().to_string(), place: place(address), is_alone }
    }

    /// The lease by which this candidate leads until `term` from now; none while another leads. A leader that died is known
    /// to be gone once its lease ends, and at once where its address is this candidate's now.
    pub fn elected(&self, stored: Option<&Lead>, now: Timestamp, term: Duration) -> Option<Lead> {
        let epoch = match stored {
            None => 1,
            Some(lead) if lead.holder == self.holder => lead.epoch,
            Some(lead) if lead.expires_at <= now || lead.place == self.place || self.is_alone => lead.epoch + 1,
            Some(_) => return None,
        };
        Some(Lead::new(&self.holder, &self.place, epoch, now.plus(term)))
    }
}

/// The boot, network and address of a server that listens: no two processes have it at one time. Where the machine does not
/// tell, a place of its own.
fn place(address: SocketAddr) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let network = fs::read_link("/proc/self/ns/net");
    match (boot, network) {
        (Ok(boot), Ok(network)) => sha256_hex(format!("{}/{}/{address}", boot.trim(), network.display()).as_bytes()),
        _ => Uuid::new_v4().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Duration = Duration::from_secs(30);

    fn candidate(port: u16) -> Candidate {
        Candidate::new(([127, 0, 0, 1], port).into(), false)
    }

    #[test]
    fn one_leads_until_its_lease_ends_and_each_leader_has_an_epoch() {
        let (a, b, now) = (candidate(1), candidate(2), Timestamp(1_000));
        let first = a.elected(None, now, TERM).unwrap();
        assert_eq!((first.epoch, first.expires_at), (1, now.plus(TERM)));
        let before = now.plus(TERM - Duration::from_millis(1));
        assert_eq!(b.elected(Some(&first), before, TERM), None);
        let renewed = a.elected(Some(&first), before, TERM).unwrap();
        assert_eq!((renewed.epoch, renewed.expires_at), (1, before.plus(TERM)));
        assert_eq!(b.elected(Some(&renewed), now.plus(TERM), TERM), None);
        assert_eq!(b.elected(Some(&renewed), renewed.expires_at, TERM).unwrap().epoch, 2);
    }

    #[test]
    fn a_restarted_leader_leads_at_once() {
        let (before, after, now) = (candidate(1), candidate(1), Timestamp(1_000));
        let lead = before.elected(None, now, TERM).unwrap();
        assert_eq!(after.elected(Some(&lead), now, TERM).unwrap().epoch, 2, "its address is taken: the other is gone");
        let alone = Candidate { is_alone: true, ..candidate(2) };
        assert_eq!(alone.elected(Some(&lead), now, TERM).unwrap().epoch, 2);
        let again = before.elected(alone.elected(Some(&lead), now, TERM).as_ref(), now, TERM);
        assert_eq!(again, None, "it hears that another leads");
    }
}
