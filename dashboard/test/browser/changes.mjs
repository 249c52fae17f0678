// Changes of a machine that runs: network cards, discs, and a copy of it.
import { LONG, steps } from './steps.mjs'

const VMS = '/apis/kubevirt.io/v1/namespaces/default/virtualmachines'
const VMIS = '/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances'

export function changes(b, name, network) {
  const { page, dialog, go, press, refused, machine, menu, until, answers } = steps(b, name)

  async function nics() {
    b.say('a network card is plugged in, seen by the guest, and taken out')
    await machine('networks')
    await page.getByRole('button', { name: 'Add network card' }).click()
    await dialog().getByLabel('Hardware address').fill('zz:00')
    await dialog().getByText('A hardware address is six pairs').waitFor()
    await press('Add network card')
    await dialog().locator('[aria-invalid=true]').waitFor()
    await dialog().getByLabel('Network', { exact: true }).selectOption(`default/${network}`)
    await dialog().getByLabel('Hardware address').fill('52:54:00:aa:bb:01')
    await b.shot('nic-add')
    await press('Add network card')
    await dialog().waitFor({ state: 'detached' })
    await page.locator('.rows li', { hasText: `default/${network}` }).waitFor()
    await until(`${VMIS}/${name}`, (vmi) => vmi.status?.interfaces?.some((i) => i.mac === '52:54:00:aa:bb:01'), 'the card is not plugged in')
    await b.shot('nics')
    await machine('console')
    await page.getByText('Connected').waitFor(LONG)
    await answers('grep -l 52:54:00:aa:bb:01 /sys/class/net/*/address | wc -l | sed s/^/cards-/', 'cards-1')
    await machine('networks')
    await menu('Actions: nic-2', 'Remove')
    await press('Remove')
    await page.locator('.rows li', { hasText: `default/${network}` }).waitFor({ state: 'detached', ...LONG })
    await until(`${VMIS}/${name}`, (vmi) => !vmi.status?.interfaces?.some((i) => i.mac === '52:54:00:aa:bb:01'), 'the card is not taken out')
  }

  async function discs() {
    b.say('a disc is put into a drive, and taken out')
    const drive = `${name}-drive`
    const disc = `${name}-disc`
    const claim = { apiVersion: 'v1', kind: 'PersistentVolumeClaim', metadata: { name: disc, annotations: { 'harvesterhci.io/imageId': 'default/small' } }, spec: { accessModes: ['ReadWriteOnce'], volumeMode: 'Block', resources: { requests: { storage: '512Mi' } } } }
    const devices = { disks: [{ name: 'cd', cdrom: { bus: 'sata' } }], interfaces: [] }
    // A machine with nothing to boot from: its firmware waits, and takes no processor.
    const vm = { apiVersion: 'kubevirt.io/v1', kind: 'VirtualMachine', metadata: { name: drive }, spec: { runStrategy: 'Always', template: { spec: { domain: { cpu: { cores: 1 }, memory: { guest: '64Mi' }, devices }, networks: [], terminationGracePeriodSeconds: 0 } } } }
    for (const [path, body] of [['/api/v1/namespaces/default/persistentvolumeclaims', claim], [VMS, vm]]) {
      const answer = await b.api('POST', path, body)
      if (answer.code !== 201) throw new Error(JSON.stringify(answer.body))
    }
    await go(`vms/default/${drive}/disks`)
    await page.locator('[data-machine-state]', { hasText: 'Running' }).waitFor(LONG)
    await page.locator('[data-disk=cd]', { hasText: 'Empty' }).waitFor()
    await menu('Actions: cd', 'Change medium')
    await dialog().getByLabel('Volumes').selectOption(disc)
    await b.shot('medium')
    await press('Save')
    await page.locator('[data-disk=cd]', { hasText: disc }).waitFor(LONG)
    await until(`${VMIS}/${drive}`, (vmi) => vmi.status?.volumeStatus?.some((v) => v.name === 'cd' && ['Ready', undefined, ''].includes(v.phase) && v.target), 'the disc is not in the drive')
    await menu('Actions: cd', 'Change medium')
    await dialog().getByLabel('Volumes').selectOption('')
    await press('Save')
    await page.locator('[data-disk=cd]', { hasText: 'Empty' }).waitFor(LONG)
    await until(`${VMIS}/${drive}`, (vmi) => !vmi.spec?.volumes?.some((v) => v.name === 'cd'), 'the disc is still in the drive')
    await b.api('DELETE', `${VMS}/${drive}`)
    await until(`${VMIS}/${drive}`, (vmi) => vmi?.code === 404, 'the machine with the drive does not go')
    await b.api('DELETE', `/api/v1/namespaces/default/persistentvolumeclaims/${disc}`)
  }

  async function clone() {
    b.say('a copy of the machine')
    const copy = `${name}-copy`
    await machine()
    await menu('Actions', 'Clone')
    const target = dialog().getByLabel('Name of the copy')
    await target.fill('Not a name')
    await refused('A name begins', 'Clone')
    await target.fill(name)
    await refused('There is a machine called', 'Clone')
    await target.fill(copy)
    await b.shot('clone')
    await press('Clone')
    await until(`${VMS}/${copy}`, (vm) => vm.metadata?.name === copy, 'the copy is not made')
    await go(`vms/default/${copy}`)
    await page.getByRole('heading', { name: copy }).waitFor()
    const source = (await b.api('GET', `${VMS}/${name}`)).body
    const made = (await b.api('GET', `${VMS}/${copy}`)).body
    const claims = (vm) => (vm.spec.template.spec.volumes ?? []).map((v) => v.persistentVolumeClaim?.claimName ?? v.dataVolume?.name).filter(Boolean)
    if (claims(made).some((c) => claims(source).includes(c))) throw new Error(`the copy shares a volume: ${claims(made)}`)
    await b.shot('copy')
    await b.api('DELETE', `${VMS}/${copy}`)
    await until(`${VMS}/${copy}`, (vm) => vm?.code === 404, 'the copy does not go')
  }
  return { nics, discs, clone }
}
