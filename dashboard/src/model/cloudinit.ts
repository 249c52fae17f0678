// Cloud-init's texts: what is wrong with them and where, and keys that are added. Pure.

import { isMap, isSeq, LineCounter, parseDocument, stringify } from 'yaml'
import type { Key } from '@/i18n'

export interface Problem { line: number; key: Key; values?: Record<string, string | number> }

/** Names at the top of a #cloud-config: those of cloud-init's modules. Others are ignored by the guest, silently. */
const KNOWN = new Set(
  ('allow_public_ssh_keys ansible apk_repos apt apt_pipelining autoinstall bootcmd byobu_by_default ca_certs ca-certs chef chpasswd cloud_config_modules ' +
    'cloud_final_modules cloud_init_modules create_hostname_file datasource datasource_list debug device_aliases disable_ec2_metadata disable_root ' +
    'disable_root_opts disk_setup drivers expire fan final_message fqdn fs_setup groups growpart hostname install_hotplug keyboard landscape ' +
    'launch-index locale locale_configfile lxd manage_etc_hosts manage_resolv_conf mcollective merge_how merge_type migrate mount_default_fields mounts ' +
    'network ntp no_ssh_fingerprints output packages package_update package_upgrade package_reboot_if_required password phone_home power_state ' +
    'prefer_fqdn_over_hostname preserve_hostname puppet random_seed reporting resize_rootfs resolv_conf rh_subscription rpi rsyslog runcmd ' +
    'salt_minion snap spacewalk ssh ssh_authorized_keys ssh_deletekeys ssh_fp_console_blacklist ssh_genkeytypes ssh_import_id ssh_key_console_blacklist ' +
    'ssh_keys ssh_publish_hostkeys ssh_pwauth ssh_quiet_keygen swap syslog_fix_perms system_info timezone ubuntu_advantage ubuntu_pro ubuntu-advantage ' +
    'ubuntu-pro updates user users vendor_data version wireguard write_files yum_repo_dir yum_repos zypper').split(' '),
)

/** First lines of texts that are not read as YAML. */
const OTHERS = /^(#!|#include|#include-once|#cloud-boothook|#part-handler|#cloud-config-archive|## template:|Content-Type:|MIME-Version:)/

/** Bytes that a cloud-init disk takes of one text. */
export const LONGEST = 256 * 1024

export const isCloudConfig = (text: string): boolean => /^#cloud-config\s*(\n|$)/.test(text.trimStart())

function parse(text: string): { problems: Problem[]; keys: { name: string; line: number }[]; map: boolean } {
  const lines = new LineCounter()
  const doc = parseDocument(text, { lineCounter: lines, prettyErrors: false })
  const problems = doc.errors.map((e): Problem => ({ line: lines.linePos(e.pos[0]).line, key: 'cloud.bad.yaml', values: { why: e.message } }))
  const items = isMap(doc.contents) ? doc.contents.items : []
  const keys = items.map((i) => ({ name: String(i.key), line: lines.linePos(i.key.range[0]).line }))
  return { problems, keys, map: doc.contents === null || isMap(doc.contents) }
}

/** What is wrong with user data. */
export function checkUser(text: string, keys: string[]): Problem[] {
  const trimmed = text.trimStart()
  if (!trimmed) return []
  if (text.length > LONGEST) return [{ line: 1, key: 'cloud.bad.long', values: { max: LONGEST / 1024 } }]
  if (!isCloudConfig(text)) {
    if (!OTHERS.test(trimmed)) return [{ line: 1, key: 'cloud.bad.first' }]
    return keys.length ? [{ line: 1, key: 'cloud.bad.keys' }] : []
  }
  const found = parse(text)
  if (found.problems.length) return found.problems
  if (!found.map) return [{ line: 2, key: 'cloud.bad.map' }]
  return found.keys.filter((k) => !KNOWN.has(k.name)).map((k) => ({ line: k.line, key: 'cloud.bad.key', values: { name: k.name } }))
}

/** What is wrong with network data, version 1 or 2. */
export function checkNetwork(text: string): Problem[] {
  if (!text.trim()) return []
  if (text.length > LONGEST) return [{ line: 1, key: 'cloud.bad.long', values: { max: LONGEST / 1024 } }]
  const found = parse(text)
  if (found.problems.length) return found.problems
  if (!found.map) return [{ line: 1, key: 'cloud.bad.map' }]
  const all = parseDocument(text).toJS() as Record<string, unknown> | null
  const network = (all?.network ?? all) as Record<string, unknown> | null
  const version = Number(network?.version)
  if (version !== 1 && version !== 2) return [{ line: 1, key: 'cloud.bad.version' }]
  const wanted = version === 1 ? ['config'] : ['ethernets', 'bonds', 'bridges', 'vlans', 'renderer']
  if (!wanted.some((name) => network && name in network)) return [{ line: 1, key: 'cloud.bad.network', values: { names: wanted.join(', ') } }]
  return []
}

/** User data with keys for the image's own user; comments and order stay. */
export function withKeys(given: string, keys: string[]): string {
  const text = given.trim()
  if (!keys.length) return text && `${text}\n`
  if (!text) return `#cloud-config\n${stringify({ ssh_authorized_keys: keys.map((k) => k.trim()) }, { lineWidth: 0 })}`
  const doc = parseDocument(text)
  const list = doc.get('ssh_authorized_keys')
  const there = isSeq(list) ? list.items.map(String) : []
  const fresh = keys.map((k) => k.trim()).filter((k) => !there.includes(k))
  if (isSeq(list)) for (const key of fresh) list.add(key)
  else doc.set('ssh_authorized_keys', doc.createNode(fresh))
  const out = doc.toString({ lineWidth: 0 })
  return out.startsWith('#cloud-config') ? out : `#cloud-config\n${out}`
}
