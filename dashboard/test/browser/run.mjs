// In a real browser, against a real server with real guests: from the first password to the last deletion.
// Environment: that of harness.mjs; SHEAF_IMAGE (a small guest), SHEAF_RESTART (a command that restarts the server). With names of
// parts, only these are done, with the machine SHEAF_NAME that an earlier run has left.
import { execFileSync } from 'node:child_process'
import { createServer, request as ask } from 'node:https'
import { changes } from './changes.mjs'
import { forms } from './forms.mjs'
import { Browser, password, url } from './harness.mjs'
import { LONG, steps } from './steps.mjs'

const b = await Browser.open()
const { page } = b
const name = process.env.SHEAF_NAME ?? `web-${Date.now().toString(36)}`
const WEIGHT_MAX = 300 * 1024
const { dialog, go, machine, menu, refused, answers } = steps(b, name)
const { simple, tokens, volume, made } = forms(b, name)
const { nics, discs, clone } = changes(b, name, made)

async function firstPassword() {
  b.say('first password')
  await page.goto(`${url}/`)
  await page.locator('input[type=password]').first().waitFor()
  await b.shot('login')
  if ((await page.locator('input[type=password]').count()) === 2) {
    await page.locator('input[type=password]').first().fill('short')
    await page.getByRole('button').first().click()
    await page.getByText('It needs at least 12 characters').waitFor()
  }
  const fresh = await b.signIn()
  const bytes = await b.weight()
  console.log(`          first load: ${Math.round(bytes / 1024)} KB`)
  if (bytes > WEIGHT_MAX) b.wrong.push(`the first load takes ${bytes} bytes; the limit is ${WEIGHT_MAX}`)
  if (fresh) {
    await page.getByText('First steps').waitFor()
    await b.shot('overview-empty')
  }
}

async function uploadImage() {
  b.say('image: bad input, then an upload')
  await page.getByRole('link', { name: 'Images' }).first().click()
  if (!(await page.getByText('small', { exact: true }).count())) {
    await page.getByRole('button', { name: 'Add image' }).first().click()
    await page.getByLabel('Address').fill('ftp://nowhere')
    await dialog().getByRole('button', { name: 'Add image' }).click()
    await page.getByText('begins with http://').waitFor()
    await b.shot('image-add')
    await page.getByRole('button', { name: 'From this computer' }).click()
    await page.locator('input[type=file]').setInputFiles(process.env.SHEAF_IMAGE)
    await dialog().getByRole('button', { name: 'Add image' }).click()
  }
  await page.getByText('Ready', { exact: true }).first().waitFor(LONG)
  await b.shot('images')
}

async function createMachine() {
  b.say('a machine: bad input, then one with cloud-init')
  await go('vms/create')
  await page.getByRole('button', { name: 'Create' }).click()
  await page.getByText('A name begins and ends with').waitFor()
  await page.getByLabel('Name', { exact: true }).fill(name)
  await page.getByLabel('Image', { exact: true }).selectOption('default/small')
  await page.getByLabel('Memory in GiB').fill('0.125')
  await page.getByLabel('Disk in GiB').fill('0.5')
  await page.getByLabel('Paste a key').fill('ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2Yc0ZkUq8q1yq3J1yq3J1yq3J1yq3J1yq3J1yq3J1y me@here')
  await page.getByText('CPUs and memory may grow').click()
  await page.getByText('Cloud-init', { exact: true }).click()
  await b.write('#cloud-config\npackges: [vim]\n')
  await page.getByRole('button', { name: 'Create' }).click()
  await page.getByText('Line 2: Cloud-init knows no “packges”').first().waitFor()
  await b.write('#cloud-config\nhostname: small\n')
  await page.locator('summary', { hasText: 'Machine: start' }).click()
  for (const [label, bad, text, good] of [['Group that keeps apart', '-web', 'Letters, digits, dashes', 'web'], ['Host name', 'Not_a_name', 'A name begins', ''], ['Seconds to shut down', '-1', 'A number of at least 0', '120'], ['CPUs', '0', 'A number of at least 1', '1'], ['Hardware address', 'xx', 'six pairs', ''], ['How many', '0', 'A whole number from 1', '1']]) {
    await page.getByLabel(label, { exact: true }).first().fill(bad)
    await page.getByRole('button', { name: /^Create/ }).last().click()
    await page.getByText(text).first().waitFor()
    await page.getByLabel(label, { exact: true }).first().fill(good)
  }
  await page.getByLabel('Watchdog').selectOption('reset')
  await page.getByText('Random numbers from the host').click()
  await b.shot('create')
  await page.getByText('The same on a command line').click()
  await page.getByText('kind: VirtualMachine').waitFor()
  await page.getByRole('button', { name: 'Create' }).click()
  await page.getByRole('heading', { name }).waitFor()
  b.say('it runs and has an address')
  await page.locator('[data-machine-state]', { hasText: 'Running' }).waitFor(LONG)
  await page.waitForFunction(() => /\d+\.\d+\.\d+\.\d+/.test(document.querySelector('[data-address]')?.textContent ?? ''), null, LONG)
  const kept = (await b.api('GET', `/api/v1/namespaces/default/secrets/${name}-cloudinit`)).body
  if (!atob(kept.data.userdata).includes('hostname: small\n') || !kept.metadata.ownerReferences) throw new Error('the cloud-init data is not what was given')
  await b.shot('vm')
}

async function consoles() {
  b.say('serial console')
  await page.getByRole('link', { name: 'Serial console' }).click()
  await page.getByText('Connected').waitFor()
  const answer = Math.floor(Math.random() * 9000) + 1000
  await answers(`echo $((${answer}*3))`, String(answer * 3))
  await b.shot('console')

  b.say('the display changes when something happens on it')
  await page.getByRole('link', { name: 'Display' }).click()
  const canvas = page.locator('[data-display] canvas')
  await canvas.waitFor()
  await page.getByText('Connected').waitFor()
  await page.waitForFunction(() => (document.querySelector('[data-display] canvas')?.width ?? 0) > 100)
  const picture = () => canvas.evaluate((c) => c.toDataURL())
  const before = await picture()
  const deadline = Date.now() + 120_000
  for (let n = 0; (await picture()) === before; n++) {
    if (Date.now() > deadline) throw new Error('the display stays as it is')
    // A reset shows the firmware's text again; keys alone show nothing where no terminal is on the display.
    if (n === 0) await b.api('PUT', `/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachineinstances/${name}/reset`, {})
    await page.waitForFunction((old) => document.querySelector('[data-display] canvas')?.toDataURL() !== old, before, { timeout: 10_000 }).catch(() => {})
  }
  await b.shot('display')
}

async function yaml() {
  b.say('YAML: completion, a change that is refused, and one that is saved')
  await machine('yaml')
  await page.getByText('runStrategy').first().waitFor()
  await b.shot('yaml')
  const text = (await (await page.request.get(`${url}/apis/kubevirt.io/v1/namespaces/default/virtualmachines/${name}`, { headers: { Accept: 'application/yaml' } })).text()).replace(/^ {2}managedFields:\n(?: {2}-.*\n| {3,}.*\n)*/m, '')
  await page.getByRole('button', { name: 'Edit', exact: true }).click()
  await b.write('apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nspec:\n  runS')
  await page.keyboard.press('Control+Space')
  await page.locator('.cm-tooltip-autocomplete', { hasText: 'runStrategy' }).waitFor()
  await page.keyboard.press('Escape')
  await b.write(text.replace('runStrategy: Always', 'runStrategy: Sometimes'))
  await page.getByRole('button', { name: 'Review' }).click()
  await page.locator('.diff .in', { hasText: 'Sometimes' }).waitFor()
  await page.getByRole('button', { name: 'Save' }).click()
  await page.locator('.wrong code', { hasText: 'spec.runStrategy' }).waitFor()
  await b.write(text.replace('  labels:\n', '  labels:\n    made-by: browser\n'))
  await page.getByRole('button', { name: 'Review' }).click()
  await page.getByRole('button', { name: 'Save' }).click()
  await page.locator('pre', { hasText: 'made-by' }).waitFor()
}

async function hotplug() {
  b.say('a disk is plugged in, seen by the guest, and grown')
  await machine('disks')
  await page.getByRole('button', { name: 'Plug in disk' }).click()
  await dialog().getByLabel('Disk in GiB').fill('0')
  await refused('A number of at least', 'Plug in disk')
  await dialog().getByLabel('Disk in GiB').fill('0.25')
  await b.shot('disk-add')
  await dialog().getByRole('button', { name: 'Plug in disk' }).click()
  await page.locator('[data-disk=data1]', { hasText: 'sd' }).waitFor(LONG)
  await b.shot('disks')
  await menu('Actions: data1', 'Grow')
  await dialog().getByLabel('Disk in GiB').fill('0.1')
  await refused('A volume only grows', 'Grow')
  await dialog().getByLabel('Disk in GiB').fill('0.5')
  await dialog().getByRole('button', { name: 'Grow' }).click()
  await page.locator('[data-disk=data1]', { hasText: '512 MiB' }).waitFor(LONG)
  b.say('more processors, while it runs')
  await machine()
  await page.getByRole('button', { name: 'Change size' }).click()
  await dialog().getByLabel('CPUs').fill('0')
  await refused('A number of at least 1', 'Save')
  await dialog().getByLabel('CPUs').fill('2')
  await dialog().getByRole('button', { name: 'Save' }).click()
  await page.locator('[data-cpus]', { hasText: '2' }).waitFor()
}

async function snapshots() {
  b.say('snapshot, and back')
  await machine('snapshots')
  await page.getByRole('button', { name: 'Take snapshot' }).click()
  await dialog().getByLabel('Name').fill('Not a name')
  await refused('A name begins', 'Take snapshot')
  await dialog().getByLabel('Name').fill(`${name}-one`)
  await dialog().getByRole('button', { name: 'Take snapshot' }).click()
  const row = page.locator(`[data-snapshot="${name}-one"]`)
  await row.getByText('Ready').waitFor(LONG)
  await b.shot('snapshots')
  await menu(`Actions: ${name}-one`, 'Restore')
  await b.shot('restore')
  await dialog().getByRole('button', { name: 'Restore' }).click()
  await row.getByText('restored').waitFor(LONG)
  await page.locator('[data-machine-state]', { hasText: 'Running' }).waitFor(LONG)
}

async function metrics() {
  b.say('metrics')
  await machine('metrics')
  // A line that is flat has no height, and so is not "visible".
  await page.locator('.chart path.line[d^=M]').first().waitFor({ state: 'attached', ...LONG })
  await b.shot('metrics')
  b.say('what was measured is there at once, on every page that shows it')
  await page.reload()
  await page.locator('.chart path.line[d^=M]').first().waitFor({ state: 'attached' })
  for (const [path, shot] of [['', 'overview-usage'], ['nodes/node1', 'node']]) {
    await go(path)
    await page.locator('.chart path.line[d^=M]').first().waitFor({ state: 'attached' })
    await page.getByRole('button', { name: '1 d', exact: true }).click()
    await page.locator('.chart path.line[d^=M]').first().waitFor({ state: 'attached' })
    await page.getByRole('button', { name: '15 min', exact: true }).click()
    await b.shot(shot)
  }
}

async function edit() {
  b.say('the form of a machine that is there')
  await machine()
  await page.getByRole('button', { name: 'Actions', exact: true }).click()
  await page.getByRole('menuitem', { name: 'Edit' }).click()
  await page.getByRole('heading', { name: `Edit ${name}` }).waitFor()
  await page.getByLabel('Description').fill('The first of its kind')
  await b.shot('edit')
  await page.getByRole('button', { name: 'Save' }).click()
  await page.getByText('The first of its kind').waitFor()
}

async function held() {
  b.say('a machine that no node can hold says so')
  await go('vms/create')
  await page.getByLabel('Name', { exact: true }).fill(`${name}-giant`)
  await page.getByLabel('Image', { exact: true }).selectOption('default/small')
  await page.getByLabel('Memory in GiB').fill('4096')
  await page.getByLabel('Disk in GiB').fill('0.5')
  await page.getByRole('button', { name: 'Create' }).click()
  await page.locator('[data-machine-state]', { hasText: 'No node fits' }).waitFor(LONG)
  await page.locator('.holds').first().waitFor()
  await b.shot('held')
}

/** Somebody who may look at one namespace: what is forbidden is not offered. */
async function user() {
  b.say('a user with one role')
  const who = `ann-${Date.now().toString(36)}`
  await go('access')
  await page.getByRole('button', { name: 'Add user' }).click()
  await refused('Lower-case letters, digits and dashes; admin')
  await dialog().getByLabel('User name').fill(who)
  await dialog().getByLabel('Password').fill('green hills in the rain')
  await dialog().getByLabel('First role').selectOption('view')
  await dialog().getByRole('button', { name: 'Create' }).click()
  await dialog().waitFor({ state: 'hidden' })
  await page.locator('tr', { hasText: who }).getByText('view (default)').waitFor()
  await b.shot('access')
  const other = await Browser.open()
  try {
    other.step = 'a user without rights'
    await other.page.goto(`${url}/`)
    await other.page.getByLabel('User name').fill(who)
    await other.page.getByLabel('Password').fill('green hills in the rain')
    await other.page.getByRole('button').first().click()
    await other.page.getByRole('heading', { name: 'Overview' }).waitFor()
    await other.page.getByRole('link', { name: 'Virtual machines' }).first().click()
    await other.page.getByRole('link', { name, exact: true }).waitFor()
    for (const forbidden of ['Create virtual machine', 'Start', 'Delete']) {
      if (await other.page.getByRole('button', { name: forbidden }).count()) throw new Error(`${forbidden} is offered to somebody who may only look`)
    }
    if (await other.page.getByRole('link', { name: 'Nodes' }).count()) throw new Error('nodes are offered to somebody who may not see them')
    await other.shot('user')
    await other.page.getByRole('link', { name, exact: true }).click()
    await other.page.locator('[data-machine-state]').waitFor()
    if (await other.page.getByRole('button', { name: 'Stop' }).count()) throw new Error('stopping is offered to somebody who may only look')
    await other.shot('user-vm')
    const stop = await other.api('PUT', `/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachines/${name}/stop`, {})
    if (stop.code !== 403) throw new Error(`the API allows it with ${stop.code}`)
    b.say('the user is deleted, and signed out')
    await menu(`Actions: ${who}`, 'Delete')
    await dialog().getByRole('button', { name: 'Delete' }).click()
    await page.locator('tr', { hasText: who }).waitFor({ state: 'detached' })
    // The account is looked at every few seconds; then the next request is refused, and the page asks to sign in.
    const signedOut = other.page.getByRole('heading', { name: 'Sign in to Sheaf' })
    const deadline = Date.now() + 60_000
    while (!(await signedOut.count())) {
      if (Date.now() > deadline) throw new Error('a deleted user stays signed in')
      await other.page.goto(`${url}/dashboard/vms`)
      await other.page.locator('h1').first().waitFor()
    }
  } finally {
    b.wrong.push(...other.wrong)
    await other.context.close()
  }
}

/** Signing out everywhere ends what other browsers have open: the console of another one, and its page. */
async function everywhere() {
  b.say('signing out everywhere ends an open console')
  const other = await Browser.open()
  try {
    other.step = 'a second browser'
    await other.page.goto(`${url}/`)
    await other.signIn()
    await other.page.goto(`${url}/dashboard/vms/default/${name}/console`)
    await other.page.getByText('Connected').waitFor(LONG)
    await page.getByRole('button', { name: 'admin' }).click()
    await page.getByRole('menuitem', { name: 'Sign out everywhere' }).click()
    await other.page.getByRole('heading', { name: 'Sign in to Sheaf' }).waitFor()
    await page.getByRole('heading', { name: 'Sign in to Sheaf' }).waitFor()
  } finally {
    b.wrong.push(...other.wrong)
    await other.context.close()
  }
  await b.signIn()
}

async function restart() {
  if (!process.env.SHEAF_RESTART) return
  b.say('the server is restarted: the page recovers by itself, and the guest goes on')
  await machine('console')
  await page.getByText('Connected').waitFor(LONG)
  execFileSync(process.env.SHEAF_RESTART, { stdio: 'inherit' })
  await answers('echo back-$((40+2))', 'back-42')
  await page.locator('.broken').waitFor({ state: 'detached' })
}

async function places() {
  b.say('every page')
  for (const [path, wait] of [['', '.list li, .calm'], ['vms', 'tbody tr'], ['vms?group=@state', '.group'], ['nodes', 'tbody tr'], ['events', '.events li'], ['settings', 'form'], ['objects?kind=api/v1/nodes', 'tbody tr'], ['access/clusterroles', 'tbody tr'],
    ['access/clusterbindings', 'tbody tr'], ['snapshots', 'tbody tr'], ['snapshots/classes', 'tbody tr'], ['migrations', '.empty'], ['types/clusterpreferences', 'tbody tr, .empty'], [`objects/v1/namespaces/_/default`, 'pre'], [`vms/default/${name}/networks`, '.rows li'], [`vms/default/${name}/events`, '.events li'], ['nowhere', 'main']]) {
    await go(path)
    await page.locator(wait).first().waitFor()
    await b.shot(path.replace(/\W+/g, '-').replace(name, 'vm').replace(/^-|-$/g, '') || 'overview')
  }
  b.say('search and shortcuts')
  await go('vms')
  await page.locator('tbody tr').first().waitFor()
  await page.keyboard.press('Control+K')
  await page.getByRole('combobox', { name: 'Search and go' }).fill(name)
  await b.shot('palette')
  await page.keyboard.press('Enter')
  await page.getByRole('heading', { name }).first().waitFor()
  await page.keyboard.press('g')
  await page.keyboard.press('n')
  await page.getByRole('heading', { name: 'Nodes' }).waitFor()
  await page.keyboard.press('?')
  await dialog().getByText('Ctrl K').waitFor()
  await b.shot('shortcuts')
  await page.keyboard.press('Escape')
  b.say('columns that are chosen stay')
  await go('vms')
  await page.getByRole('button', { name: 'Columns' }).click()
  await page.getByRole('menuitem', { name: 'Labels' }).click()
  await page.reload()
  await page.getByText('made-by=browser').first().waitFor()
  b.say('Chinese')
  await page.emulateMedia({ colorScheme: 'light' })
  await page.getByRole('button', { name: 'admin' }).click()
  await page.getByRole('menuitem', { name: '简体中文' }).click()
  await go('vms/create')
  await page.getByRole('heading', { name: '创建虚拟机' }).waitFor()
  await b.shot('create-zh')
  await go('vms')
  await page.locator('tbody tr').first().waitFor()
  await b.shot('vms-zh')
  await page.getByRole('button', { name: 'admin' }).click()
  await page.getByRole('menuitem', { name: 'English' }).click()
  await page.getByRole('heading', { name: 'Virtual machines' }).waitFor()
  await page.setViewportSize({ width: 1440, height: 900 })
}

/** What people do daily, on a small screen and on a phone, in light and dark: nothing is wider than the screen, and axe finds nothing. */
async function screens() {
  const DAILY = [['', 'overview', '.list li, .calm'], ['vms', 'vms', 'tbody tr'], [`vms/default/${name}`, 'vm', '[data-machine-state]'], [`vms/default/${name}/metrics`, 'metrics', '.chart'], [`vms/default/${name}/disks`, 'disks', '.rows li'],
    [`vms/default/${name}/console`, 'console', '[data-console]'], ['vms/create', 'create', 'form'], ['images', 'images', 'tbody tr'], ['volumes', 'volumes', 'tbody tr'], ['nodes', 'nodes', 'tbody tr'], ['nodes/node1', 'node', '.chart'], ['settings', 'settings', 'form']]
  for (const [screen, width, height, colorScheme] of [['small', 1280, 800, 'light'], ['dark', 1280, 800, 'dark'], ['phone', 390, 844, 'light'], ['phone-dark', 390, 844, 'dark']]) {
    b.say(`daily pages: ${screen}, ${width} wide, ${colorScheme}`)
    await page.emulateMedia({ colorScheme })
    await page.setViewportSize({ width, height })
    for (const [path, shot, wait] of DAILY) {
      b.step = `${screen}: ${shot}`
      await go(path)
      await page.locator(wait).first().waitFor()
      await page.waitForFunction(() => !document.querySelector('main')?.textContent?.includes('Loading'))
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth)
      if (wide > 0) b.wrong.push(`${shot} is ${wide} px wider than a screen of ${width}`)
      const tables = await page.evaluate(() => [...document.querySelectorAll('.box')].filter((box) => box.scrollWidth > box.clientWidth + 1).length)
      if (tables) b.wrong.push(`${shot} has a table that has to be scrolled sideways on a screen of ${width}`)
      await b.shot(`${screen}-${shot}`)
    }
  }
  await page.emulateMedia({ colorScheme: 'light' })
  await page.setViewportSize({ width: 1440, height: 900 })
}

/** Behind a proxy that puts everything below /cluster/one/. */
async function prefixed() {
  b.say('behind a path prefix')
  const target = new URL(url)
  const cert = await import('./certificate.mjs').then((m) => m.make())
  const prefix = '/cluster/one'
  const proxy = createServer(cert, (from, to) => {
    const path = from.url.startsWith(`${prefix}/`) ? from.url.slice(prefix.length) : undefined
    if (!path) return to.writeHead(404).end()
    const back = ask({ host: target.hostname, port: target.port, path, method: from.method, headers: from.headers, rejectUnauthorized: false }, (answer) => {
      to.writeHead(answer.statusCode, answer.headers)
      answer.pipe(to)
    })
    back.on('error', () => to.destroy())
    from.pipe(back)
  })
  proxy.on('upgrade', (from, socket, head) => {
    const back = ask({ host: target.hostname, port: target.port, path: from.url.slice(prefix.length), headers: from.headers, rejectUnauthorized: false })
    back.on('upgrade', (answer, other, rest) => {
      socket.write(`HTTP/1.1 101 Switching Protocols\r\n${Object.entries(answer.headers).map(([k, v]) => `${k}: ${v}`).join('\r\n')}\r\n\r\n`)
      socket.write(rest)
      other.write(head)
      other.pipe(socket).pipe(other)
      other.on('error', () => socket.destroy())
    })
    socket.on('error', () => back.destroy())
    back.on('error', () => socket.destroy())
    back.end()
  })
  await new Promise((done) => proxy.listen(0, '127.0.0.1', done))
  const there = await b.context.newPage()
  b.watch(there)
  try {
    await there.goto(`https://127.0.0.1:${proxy.address().port}${prefix}/dashboard/vms/default/${name}/console`)
    // Cookies know no ports: the session is the same.
    await there.getByText('Connected').waitFor(LONG)
    await there.getByRole('link', { name: 'Nodes' }).click()
    await there.locator('tbody tr').first().waitFor()
    if (!there.url().includes(`${prefix}/dashboard/nodes`)) throw new Error(`the address is ${there.url()}`)
  } finally {
    await there.close()
    proxy.closeAllConnections()
    proxy.close()
  }
}

async function deletion() {
  b.say('delete, as a bulk action')
  await go('vms')
  await page.getByRole('checkbox', { name, exact: true }).check()
  await page.getByRole('checkbox', { name: `${name}-giant` }).check()
  await page.getByText('2 selected').waitFor()
  await page.getByRole('button', { name: 'Delete' }).first().click()
  await b.shot('delete')
  await dialog().getByRole('button', { name: 'Delete' }).click()
  await page.getByRole('link', { name, exact: true }).waitFor({ state: 'detached', ...LONG })
  await page.getByRole('link', { name: `${name}-giant` }).waitFor({ state: 'detached', ...LONG })
}

async function leave() {
  b.say('another password, then sign out')
  await go('settings')
  await page.getByLabel('Password so far').fill('not the password')
  await page.getByLabel('New password').fill(`${password}!`)
  await page.getByLabel('The same password again').fill(`${password}!`)
  await page.getByRole('button', { name: 'Change password' }).click()
  await page.getByText('this is not the password so far').waitFor()
  await page.getByLabel('Password so far').fill(password)
  await page.getByRole('button', { name: 'Change password' }).click()
  await page.getByText('The password is changed.').waitFor()
  const back = await b.api('POST', '/v1/auth/password', { current: `${password}!`, password })
  if (back.code !== 200) throw new Error(`changing the password back: ${JSON.stringify(back)}`)
  await page.getByRole('button', { name: 'admin' }).click()
  await page.getByRole('menuitem', { name: 'Sign out', exact: true }).click()
  await page.getByRole('heading', { name: 'Sign in to Sheaf' }).waitFor()
}

const all = { firstPassword, uploadImage, createMachine, consoles, yaml, hotplug, snapshots, metrics, edit, held, simple, tokens, volume, nics, discs, clone, user, everywhere, restart, places, screens, prefixed, deletion, leave }
let failure
try {
  const parts = process.argv.slice(2)
  if (parts.length) await b.signIn()
  for (const part of parts.length ? parts.map((p) => all[p]) : Object.values(all)) await part()
  if (!b.wrong.length) b.say('all is well')
} catch (error) {
  failure = error
}
await b.close(failure)
// The proxy of the path prefix may still hold connections; nothing waits for them.
process.exit()
