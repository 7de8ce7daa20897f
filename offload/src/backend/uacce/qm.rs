//! The queue manager of HiSilicon accelerators, as a process sees it.
//!
//! A queue file has two regions: MMIO with the doorbell, and DUS with the queues themselves:
//!
//! ```text
//!   DUS   SQ: depth x SQE | CQ: depth x 16 B | padding ... | rx status | tx status
//!   CQE   0        4 cmd id | 6        8 SQ head | 10 SQ number | 12       14 phase (bit 0)
//! ```
//!
//! The device reads SQEs in order, may finish them in any, writes each result back into its SQE
//! and then a CQE that names it. A CQE is new when its phase bit is the expected one; that starts
//! at 1 and flips each time the queue wraps. Sources: linux `drivers/crypto/hisilicon/qm.c`
//! (`qm_db_v1`, `qm_db_v2`, `hisi_qm_uacce_*`), `include/uapi/misc/uacce/{uacce,hisi_qm}.h`;
//! UADK `drv/hisi_qm_udrv.c`.

/// Length of a CQE.
pub(crate) const CQE_LEN_BYTES: usize = 16;
/// Where in a CQE the index of the SQE stands, with the number of the queue above it.
pub(crate) const CQE_SQ_HEAD: usize = 8;
/// Where in a CQE the word with the phase stands.
pub(crate) const CQE_PHASE: usize = 12;
/// The phase in that word.
pub(crate) const PHASE_BIT: u32 = 1 << 16;

/// From the end of DUS: not zero once the kernel forbids new descriptors.
pub(crate) const TX_STATUS_FROM_END: usize = 4;
/// From the end of DUS: not zero once no more completions will come.
pub(crate) const RX_STATUS_FROM_END: usize = 8;

/// Entries of a queue where the kernel does not say (linux `QM_Q_DEPTH`).
pub(crate) const DEPTH_DEFAULT: u16 = 1024;

/// Which register layout a device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    /// Of version 2 and later.
    V2,
    /// As version 2, with later descriptor types.
    V3,
}

impl Version {
    /// Of the `api` attribute, such as `hisi_qm_v3`.
    pub(crate) fn from_api(api: &str) -> Option<Self> {
        match api.strip_prefix("hisi_qm_v")? {
            "1" => Some(Self::V1),
            "2" => Some(Self::V2),
            // v4 was never released; v5 adds usage counters only.
            "3" | "5" => Some(Self::V3),
            _ => None,
        }
    }

    /// Where in MMIO the doorbell is (linux `QM_DOORBELL_BASE_V1`, `QM_DOORBELL_SQ_CQ_BASE_V2`).
    pub(crate) fn doorbell_offset(self) -> usize {
        match self {
            Self::V1 => 0x340,
            Self::V2 | Self::V3 => 0x1000,
        }
    }
}

/// What a doorbell announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Announce {
    /// A new SQ tail: the index after the last descriptor.
    Tail(u16),
    /// A new CQ head: the index after the last completion taken. `arm`: wake `poll` at the next.
    Head { index: u16, arm: bool },
}

impl Announce {
    /// The value to store for queue `number`.
    pub(crate) fn encode(self, version: Version, number: u16) -> u64 {
        let (kind, index, arm) = match self {
            Self::Tail(index) => (0_u64, index, false),
            Self::Head { index, arm } => (1, index, arm),
        };
        let (number, kind) = match version {
            Version::V1 => (u64::from(number), kind << 16),
            // Ten bits of queue number; bits 16 to 31 are for a hint that the kernel leaves 0.
            Version::V2 | Version::V3 => (u64::from(number & 0x3ff), kind << 12),
        };
        number | kind | u64::from(index) << 32 | u64::from(arm) << 48
    }

    /// The queue number and what is announced, as the device reads it.
    pub(crate) fn decode(version: Version, value: u64) -> Option<(u16, Self)> {
        let bits = |low: u32, mask: u64| {
            u16::try_from(value >> low & mask).expect("masked to 16 bits or less")
        };
        let (number, kind) = match version {
            Version::V1 => (bits(0, 0xffff), bits(16, 0xff)),
            Version::V2 | Version::V3 => (bits(0, 0x3ff), bits(12, 0xf)),
        };
        let index = bits(32, 0xffff);
        match kind {
            0 => Some((number, Self::Tail(index))),
            1 => Some((number, Self::Head { index, arm: bits(48, 1) == 1 })),
            _ => None,
        }
    }
}

/// What the kernel says of a queue (`struct hisi_qp_info`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueInfo {
    pub(crate) sqe_len_bytes: usize,
    pub(crate) sq_depth: u16,
    pub(crate) cq_depth: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doorbells_have_the_published_layout() {
        let tail = Announce::Tail(0x123);
        let head = Announce::Head { index: 0x45, arm: true };
        assert_eq!(tail.encode(Version::V1, 0xabcd), 0x0000_0123_0000_abcd);
        assert_eq!(head.encode(Version::V1, 7), 0x0001_0045_0001_0007);
        assert_eq!(tail.encode(Version::V2, 0x7ff), 0x0000_0123_0000_03ff);
        assert_eq!(head.encode(Version::V3, 7), 0x0001_0045_0000_1007);
        for version in [Version::V1, Version::V2, Version::V3] {
            for announce in [tail, head] {
                let decoded = Announce::decode(version, announce.encode(version, 9));
                assert_eq!(decoded, Some((9, announce)));
            }
        }
        // Event queues are the kernel's.
        assert_eq!(Announce::decode(Version::V2, 2 << 12), None);
    }

    #[test]
    fn an_api_name_gives_the_version() {
        for (api, version) in [
            ("hisi_qm_v1", Some(Version::V1)),
            ("hisi_qm_v2", Some(Version::V2)),
            ("hisi_qm_v3", Some(Version::V3)),
            ("hisi_qm_v5", Some(Version::V3)),
            ("hisi_qm_v2_noiommu", None),
            ("idxd", None),
        ] {
            assert_eq!(Version::from_api(api), version, "{api}");
        }
    }
}
