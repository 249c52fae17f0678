//! Node loops: machines, attachments, links, images, disks, node status.
