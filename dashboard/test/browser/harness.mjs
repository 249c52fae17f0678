// A browser at a server, for the tests and for benches: what is wrong on any page is remembered, pictures are taken, axe looks.
// Environment: SHEAF_URL, SHEAF_OUT (pictures), CHROMIUM, SHEAF_SHOTS=readme (only those of the README).
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { chromium } from 'playwright-core'

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')
export const url = process.env.SHEAF_URL ?? 'https://127.0.0.1:6443'
export const out = process.env.SHEAF_OUT ?? new URL('out', import.meta.url).pathname
export const password = process.env.SHEAF_PASSWORD ?? 'amber field of quiet barley'
/** For the README only a few pictures are kept. */
const README = ['vms', 'console', 'overview-usage', 'small-create', 'dark-vm', 'phone-vm']
const only = process.env.SHEAF_SHOTS === 'readme' ? README : undefined
const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']

export class Browser {
  wrong = []
  step = 'start'
  begun = Date.now()

  static async open(options = {}) {
    mkdirSync(out, { recursive: true })
    const browser = new Browser()
    browser.profile = mkdtempSync(join(tmpdir(), 'sheaf-browser-'))
    browser.context = await chromium.launchPersistentContext(browser.profile, {
      executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', headless: true, ignoreHTTPSErrors: true, reducedMotion: 'reduce',
      viewport: { width: 1440, height: 900 }, colorScheme: 'light', locale: 'en-US', args: FLAGS, ...options,
    })
    browser.context.setDefaultTimeout(60_000)
    browser.page = browser.context.pages()[0] ?? (await browser.context.newPage())
    browser.watch(browser.page)
    return browser
  }

  /** What the policy refuses or a script throws is a failure, wherever it happens. */
  watch(page) {
    page.on('pageerror', (error) => this.wrong.push(`${this.step}: ${error.stack ?? error}`))
    page.on('console', (message) => {
      if (message.type() === 'error' && /Content Security Policy|Uncaught|Vue warn/.test(message.text())) this.wrong.push(`${this.step}: ${message.text()}`)
    })
  }

  say(text) {
    this.step = text
    console.log(`${((Date.now() - this.begun) / 1000).toFixed(1).padStart(6)} s  ${text}`)
  }

  /** Looks at the page as it is: a picture, and what axe finds in it. */
  async shot(name, page = this.page) {
    if (!only || only.includes(name) || name === 'failed') await page.screenshot({ path: join(out, `${name}.png`) })
    if (name === 'failed') return
    // Not as a script of the page, which the policy would refuse.
    await page.evaluate(axe)
    // A form's buttons stay in sight while it is scrolled, and so may lie over anything; at its end they lie over nothing.
    const found = await page.evaluate(async () => {
      document.querySelector('form > footer')?.scrollIntoView({ block: 'end' })
      return window.axe.run({ runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa'] })
    })
    for (const v of found.violations) this.wrong.push(`axe on ${name}: ${v.id}: ${v.help}: ${v.nodes.map((n) => n.target.join(' ')).slice(0, 3).join(', ')}`)
  }

  /** Bytes that came over the network for scripts, styles and fonts. */
  weight() {
    return this.page.evaluate(() => performance.getEntriesByType('resource').filter((e) => e.name.includes('/assets/')).reduce((n, e) => n + e.transferSize, 0))
  }

  /** The first password, or signing in with it. Whether it was the first. */
  async signIn() {
    const { page } = this
    if (!page.url().startsWith(url)) await page.goto(`${url}/`)
    await page.locator('input[type=password]').first().waitFor()
    const fresh = (await page.locator('input[type=password]').count()) === 2
    await page.locator('input[type=password]').first().fill(password)
    if (fresh) await page.locator('input[type=password]').nth(1).fill(password)
    await page.getByRole('button').first().click()
    await page.getByRole('heading', { name: 'Overview' }).waitFor()
    return fresh
  }

  /** A request of the page, with its session. */
  api(method, path, body, type = 'application/json') {
    return this.page.evaluate(async ([method, path, body, type]) => {
      const csrf = document.cookie.split('; ').find((c) => c.startsWith('sheaf_csrf='))?.slice(11) ?? ''
      const answer = await fetch(path, { method, headers: { 'Content-Type': type, 'X-Sheaf-CSRF': csrf }, body: body === undefined ? undefined : JSON.stringify(body) })
      return { code: answer.status, body: await answer.json().catch(() => undefined) }
    }, [method, path, body, type])
  }

  /** Text of the editor that is seen, in place of what was there. */
  async write(text, editor = this.page.locator('.cm-content').first()) {
    await editor.click()
    await this.page.keyboard.press('Control+A')
    await this.page.keyboard.press('Delete')
    await this.page.evaluate((t) => {
      const box = document.activeElement
      const data = new DataTransfer()
      data.setData('text/plain', t)
      box.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true }))
    }, text)
  }

  async close(error) {
    if (error || this.wrong.length) {
      await this.shot('failed').catch(() => {})
      console.error(`failed at "${this.step}": ${error?.message ?? 'the page complained'}\n${this.wrong.join('\n')}\nThe page then: ${join(out, 'failed.png')}`)
      process.exitCode = 1
    }
    await this.context.close()
    rmSync(this.profile, { recursive: true, force: true })
  }
}
