// Each form that makes or changes a simple kind: what it refuses and where it says so, then something good. The forms of machines,
// disks, images and users have parts of their own in run.mjs and changes.mjs.
import { steps } from './steps.mjs'

const KEY = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me'
const NAME = 'A name begins'

/** `bad`: label, what is typed, what is said. `yaml`: text for the editor that is refused, what is said, and one that is taken. */
const FORMS = [
  { path: 'networks', bad: [['Bridge', 'a bridge with a long name', 'at most 15'], ['VLAN', '5000', 'from 0 to 4094'], ['MTU', '5', '576 to 9000']], good: [['Bridge', 'mgmt-br'], ['VLAN', '0'], ['MTU', '0']] },
  { path: 'keys', bad: [['Public key', 'hello', 'This is no public SSH key'], ['Public key', '-----BEGIN OPENSSH PRIVATE KEY-----', 'This is a private key']], good: [['Public key', KEY]] },
  { path: 'types', bad: [['CPU', '0', 'A number above zero'], ['Memory in GiB', '0', 'A number above zero']], good: [['CPU', '1'], ['Memory in GiB', '0.25']] },
  { path: 'types/types', bad: [['CPU', '1.5', 'A number above zero']], good: [['CPU', '1'], ['Memory in GiB', '0.25']] },
  { path: 'types/clusterpreferences', bad: [], good: [], yaml: ['- a list', undefined, 'devices:\n  preferredDiskBus: virtio\n'] },
  { path: 'types/preferences', bad: [], good: [], yaml: ['- a list', undefined, 'devices:\n  preferredDiskBus: virtio\n'] },
  { path: 'namespaces', bad: [], good: [['Description', 'For tests']] },
  { path: 'namespaces/quotas', bad: [['CPUs', '-1', 'A number above zero']], good: [['CPUs', '8'], ['Memory in GiB', '16']] },
  { path: 'namespaces/limits', bad: [], good: [], yaml: ['type: Container', undefined, '- type: Container\n  max: {cpu: "64"}\n'] },
  { path: 'access/roles', bad: [], good: [], yaml: ['apiGroups: []', undefined, '- apiGroups: [kubevirt.io]\n  resources: [virtualmachines]\n  verbs: [get]\n'] },
  { path: 'access/clusterroles', bad: [], good: [], yaml: ['apiGroups: []', undefined, '- apiGroups: [kubevirt.io]\n  resources: [virtualmachines]\n  verbs: [get]\n'] },
  { path: 'access/bindings', button: 'Create', select: [['To a', 'ServiceAccount']], bad: [['Called', 'no-namespace', 'NAMESPACE/NAME is needed']], good: [['Called', 'default/robot'], ['Role', 'view']] },
  { path: 'access/clusterbindings', select: [['To a', 'ServiceAccount']], bad: [['Called', 'no-namespace', 'NAMESPACE/NAME is needed']], good: [['Called', 'default/robot'], ['Role', 'view']] },
  { path: 'access/accounts', bad: [], good: [] },
]

export function forms(b, name) {
  const { page, dialog, go, press, refused, menu } = steps(b, name)
  const field = (label) => dialog().getByLabel(label, { exact: true })
  /** What was made, for what uses it. */
  const x = `${name}-${Date.now().toString(36)}`

  async function simple() {
    b.say('bad input in each form of a simple kind, then good')
    for (const form of FORMS) {
      b.step = `the form at ${form.path}`
      await go(`${form.path}?add=1`)
      await dialog().waitFor()
      await refused(NAME)
      await field('Name').fill('not/a name')
      await refused(NAME)
      await field('Name').fill(x)
      for (const [label, choice] of form.select ?? []) await field(label).selectOption(choice)
      for (const [label, bad, text] of form.bad) {
        await field(label).fill(bad)
        await refused(text)
      }
      for (const [label, good] of form.good) await field(label).fill(good)
      if (form.yaml) {
        const [bad, , good] = form.yaml
        await b.write(bad, dialog().locator('.cm-content').first())
        await press('Create')
        await dialog().locator('[aria-invalid=true], .error').first().waitFor()
        await b.write(good, dialog().locator('.cm-content').first())
      }
      const shot = form.path.replace(/\W/g, '-')
      await b.shot(`form-${shot}`)
      await press('Create')
      await page.getByRole('link', { name: x }).first().waitFor()
      await b.shot(shot)
    }
  }

  async function tokens() {
    b.say('tokens and kubeconfigs: of a service account, and one’s own')
    const take = async (who) => {
      await press('Make token')
      await dialog().locator('.token').waitFor()
      await b.shot('token')
      const [download] = await Promise.all([page.waitForEvent('download'), press('kubeconfig')])
      if (download.suggestedFilename() !== `${who}.kubeconfig`) throw new Error(`the kubeconfig is called ${download.suggestedFilename()}`)
      const { readFileSync } = await import('node:fs')
      const text = readFileSync(await download.path(), 'utf8')
      if (!text.includes('certificate-authority-data') || !text.includes(`name: ${who}`)) throw new Error(`the kubeconfig lacks something:\n${text}`)
      return /token: (\S+)/.exec(text)[1]
    }
    await go('access/accounts')
    await menu(`Actions: ${x}`, 'Token and kubeconfig')
    await take(x)
    await go('settings')
    await page.getByRole('button', { name: 'Token and kubeconfig' }).click()
    const token = await take('admin')
    const answer = await (await b.context.request.get(`${new URL(page.url()).origin}/api/v1/namespaces`, { headers: { Authorization: `Bearer ${token}`, Cookie: '' } })).json()
    if (answer.kind !== 'NamespaceList') throw new Error(`the token is good for nothing: ${JSON.stringify(answer)}`)
  }

  async function volume() {
    b.say('a volume, with a size that is none')
    await go('volumes?add=1')
    await refused(NAME)
    await field('Name').fill(x)
    await field('Disk in GiB').fill('0')
    await refused('A number of at least')
    await field('Disk in GiB').fill('0.25')
    await press('Create')
    await page.locator('tbody').getByText(x).first().waitFor()
    await b.shot('volumes')
  }
  return { simple, tokens, volume, made: x }
}
