// In a real browser, against a real server: first password, an image, a VM, its address, its serial console.
// Environment: SHEAF_URL, SHEAF_IMAGE (a small guest), SHEAF_OUT (screenshots), CHROMIUM. scripts/test-browser.sh sets them.
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'
import { chromium } from 'playwright-core'

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')

const url = process.env.SHEAF_URL ?? 'https://127.0.0.1:6443'
const image = process.env.SHEAF_IMAGE
const out = process.env.SHEAF_OUT ?? new URL('out', import.meta.url).pathname
const password = process.env.SHEAF_PASSWORD ?? 'amber field of quiet barley'
mkdirSync(out, { recursive: true })
const profile = mkdtempSync(join(tmpdir(), 'sheaf-browser-'))

const context = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  headless: true,
  ignoreHTTPSErrors: true,
  reducedMotion: 'reduce',
  viewport: { width: 1440, height: 900 },
  colorScheme: 'light',
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
})
context.setDefaultTimeout(60_000)
const page = context.pages()[0] ?? (await context.newPage())

// What the policy refuses or a script throws is a failure, wherever it happens.
const wrong = []
page.on('pageerror', (error) => wrong.push(String(error)))
page.on('console', (message) => {
  if (message.type() === 'error' && /Content Security Policy|Uncaught|Vue warn/.test(message.text())) wrong.push(message.text())
})

let step = 'start'
const begun = Date.now()
const say = (text) => {
  step = text
  console.log(`${((Date.now() - begun) / 1000).toFixed(1).padStart(6)} s  ${text}`)
}
/** For the README only a few are kept. */
const only = process.env.SHEAF_SHOTS === 'readme' ? ['overview', 'console', 'vm-dark'] : undefined

/** Looks at the page as it is: a picture, and what axe finds in it. */
async function shot(name) {
  if (!only || only.includes(name) || name === 'failed') await page.screenshot({ path: join(out, `${name}.png`) })
  if (name === 'failed') return
  // Not as a script of the page, which the policy would refuse.
  await page.evaluate(axe)
  const found = await page.evaluate(() => window.axe.run({ runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa'] }))
  for (const v of found.violations) wrong.push(`axe on ${name}: ${v.id}: ${v.help}: ${v.nodes.map((n) => n.target.join(' ')).slice(0, 3).join(', ')}`)
}

/** Bytes that came over the network for scripts, styles and fonts. */
const weight = () => page.evaluate(() => performance.getEntriesByType('resource').filter((e) => e.name.includes('/assets/')).reduce((n, e) => n + e.transferSize, 0))
const WEIGHT_MAX = 300 * 1024

try {
  say('first password')
  await page.goto(`${url}/`)
  await page.locator('input[type=password]').first().waitFor()
  await shot('login')
  const fresh = (await page.locator('input[type=password]').count()) === 2
  if (fresh) {
    await page.locator('input[type=password]').first().fill('short')
    await page.getByRole('button').first().click()
    await page.getByText('It needs at least 12 characters').waitFor()
    await page.locator('input[type=password]').first().fill(password)
    await page.locator('input[type=password]').nth(1).fill(password)
  } else {
    await page.locator('input[type=password]').fill(password)
  }
  await page.getByRole('button').first().click()
  await page.getByRole('heading', { name: 'Overview' }).waitFor()
  const bytes = await weight()
  console.log(`          first load: ${Math.round(bytes / 1024)} KB`)
  if (bytes > WEIGHT_MAX) wrong.push(`the first load takes ${bytes} bytes; the limit is ${WEIGHT_MAX}`)
  if (fresh) {
    await page.getByText('First steps').waitFor()
    await shot('overview-empty')
  }

  say('image: bad input, then an upload')
  await page.getByRole('link', { name: 'Images' }).first().click()
  if (!(await page.getByText('small', { exact: true }).count())) {
    await page.getByRole('button', { name: 'Add image' }).first().click()
    await page.getByLabel('Address').fill('ftp://nowhere')
    await page.getByRole('dialog').getByRole('button', { name: 'Add image' }).click()
    await page.getByText('begins with http://').waitFor()
    await shot('image-add')
    await page.getByRole('button', { name: 'From this computer' }).click()
    await page.locator('input[type=file]').setInputFiles(image)
    await page.getByRole('dialog').getByRole('button', { name: 'Add image' }).click()
  }
  await page.getByText('Ready', { exact: true }).first().waitFor()
  await shot('images')

  say('a VM: bad input, then one that is created')
  await page.goto(`${url}/dashboard/vms/create`)
  await page.getByRole('button', { name: 'Create' }).click()
  await page.getByText('A name begins and ends with').waitFor()
  const name = `web-${Date.now().toString(36)}`
  await page.getByLabel('Name', { exact: true }).fill(name)
  await page.locator('.choice:not(.add)').first().click()
  await page.getByLabel('Memory in GiB').fill('0.125')
  await page.getByLabel('Disk in GiB').fill('0.5')
  await page.getByLabel('Paste a key').fill('ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2Yc0ZkUq8q1yq3J1yq3J1yq3J1yq3J1yq3J1yq3J1y me@here')
  await shot('create')
  await page.getByRole('button', { name: 'Create' }).click()
  await page.getByRole('heading', { name }).waitFor()

  say('it runs and has an address')
  await page.locator('[data-machine-state]', { hasText: 'Running' }).waitFor({ timeout: 240_000 })
  await page.waitForFunction(() => /\d+\.\d+\.\d+\.\d+/.test(document.querySelector('[data-address]')?.textContent ?? ''), null, { timeout: 240_000 })
  await shot('vm')

  say('serial console')
  await page.getByRole('link', { name: 'Serial console' }).click()
  await page.getByText('Connected').waitFor()
  const screen = page.locator('.xterm-rows')
  const answer = Math.floor(Math.random() * 9000) + 1000
  const deadline = Date.now() + 240_000
  for (;;) {
    await page.locator('[data-console]').click()
    await page.keyboard.type(`echo $((${answer}*3))`)
    await page.keyboard.press('Enter')
    const seen = await screen.getByText(String(answer * 3)).first().waitFor({ timeout: 5000 }).then(() => true, () => false)
    if (seen) break
    if (Date.now() > deadline) throw new Error(`the guest's shell does not answer; the console shows: ${await screen.innerText()}`)
  }
  await shot('console')

  say('display')
  await page.getByRole('link', { name: 'Display' }).click()
  await page.locator('[data-display] canvas').waitFor()
  await shot('display')
  await page.getByRole('link', { name: 'YAML' }).click()
  await page.getByText('runStrategy').first().waitFor()
  await shot('yaml')

  say('YAML: a change that is refused, and one that is saved')
  const editor = page.getByRole('textbox', { name: 'YAML' })
  await page.getByRole('button', { name: 'Edit' }).click()
  const yaml = await editor.inputValue()
  await editor.fill(yaml.replace('runStrategy: Always', 'runStrategy: Sometimes'))
  await page.getByRole('button', { name: 'Review' }).click()
  await page.locator('.diff .in', { hasText: 'Sometimes' }).waitFor()
  await page.getByRole('button', { name: 'Save' }).click()
  await page.locator('.wrong code', { hasText: 'spec.runStrategy' }).waitFor()
  await editor.fill(yaml.replace('  labels:\n', '  labels:\n    made-by: browser\n'))
  await page.getByRole('button', { name: 'Review' }).click()
  await page.getByRole('button', { name: 'Save' }).click()
  await page.locator('pre', { hasText: 'made-by' }).waitFor()

  say('a VM that no node can hold says so')
  await page.goto(`${url}/dashboard/vms/create`)
  const giant = `giant-${Date.now().toString(36)}`
  await page.getByLabel('Name', { exact: true }).fill(giant)
  await page.locator('.choice:not(.add)').first().click()
  await page.getByLabel('Memory in GiB').fill('4096')
  await page.getByLabel('Disk in GiB').fill('0.5')
  await page.getByRole('button', { name: 'Create' }).click()
  await page.locator('[data-machine-state]', { hasText: 'No node fits' }).waitFor()
  await page.locator('.holds').waitFor()
  await shot('held')

  say('list, overview, dark')
  await page.goto(`${url}/dashboard/vms`)
  await page.getByText(name).waitFor()
  await shot('vms')
  await page.goto(`${url}/dashboard/`)
  await page.getByRole('heading', { name: 'Needs attention' }).waitFor()
  await page.waitForFunction(() => document.querySelectorAll('.list li, .calm').length > 0)
  await shot('overview')
  for (const place of ['nodes', 'volumes']) {
    await page.goto(`${url}/dashboard/${place}`)
    await page.locator('tbody tr').first().waitFor()
    await shot(place)
  }
  await page.emulateMedia({ colorScheme: 'dark' })
  await page.goto(`${url}/dashboard/vms/default/${name}`)
  await page.locator('[data-machine-state]').waitFor()
  await shot('vm-dark')
  await page.emulateMedia({ colorScheme: 'light' })

  say('delete, as a bulk action')
  await page.goto(`${url}/dashboard/vms`)
  await page.getByRole('checkbox', { name }).check()
  await page.getByRole('button', { name: 'Delete' }).first().click()
  await shot('delete')
  await page.getByRole('dialog').getByRole('button', { name: 'Delete' }).click()
  await page.getByRole('link', { name, exact: true }).waitFor({ state: 'detached', timeout: 240_000 })
  await page.getByRole('checkbox', { name: giant }).check()
  await page.getByRole('button', { name: 'Delete' }).first().click()
  await page.getByRole('dialog').getByRole('button', { name: 'Delete' }).click()
  await page.getByRole('link', { name: giant }).waitFor({ state: 'detached', timeout: 240_000 })

  say('sign out')
  await page.getByRole('button', { name: 'admin' }).click()
  await page.getByRole('menuitem', { name: 'Sign out', exact: true }).click()
  await page.getByRole('heading', { name: 'Sign in to Sheaf' }).waitFor()
  if (wrong.length) throw new Error(`the page complained:\n${wrong.join('\n')}`)
  say('all is well')
} catch (error) {
  await shot('failed').catch(() => {})
  console.error(`failed at "${step}": ${error.message}\n${wrong.join('\n')}\nThe page then: ${join(out, 'failed.png')}`)
  process.exitCode = 1
} finally {
  await context.close()
  rmSync(profile, { recursive: true, force: true })
}
