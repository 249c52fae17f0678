// What the parts of the browser test have in common: pages, dialogs, menus, and the guest's console.
import { url } from './harness.mjs'

export const LONG = { timeout: 240_000 }

/** Steps in a browser about one machine. */
export function steps(b, name) {
  const { page } = b
  const dialog = () => page.getByRole('dialog')
  const go = (path) => page.goto(`${url}/dashboard/${path}`)
  const press = (button) => dialog().getByRole('button', { name: button, exact: true }).click()
  return {
    page, dialog, go, press,
    machine: (tab = '') => go(`vms/default/${name}/${tab}`),
    menu: async (object, item) => {
      await page.getByRole('button', { name: object, exact: true }).click()
      await page.getByRole('menuitem', { name: item }).click()
    },
    /** Bad input: what is sent is refused beside its field, and nothing is made. */
    refused: async (text, button = 'Create') => {
      await press(button)
      await dialog().getByText(text).first().waitFor()
      if (!(await dialog().locator('[aria-invalid=true]').count())) throw new Error(`“${text}” is said, and no field is marked`)
    },
    /** Asks the API until an object is as it should be. */
    until: async (path, good, what) => {
      const deadline = Date.now() + LONG.timeout
      for (;;) {
        const { body } = await b.api('GET', path)
        if (good(body)) return body
        if (Date.now() > deadline) throw new Error(`${what}: ${JSON.stringify(body?.status ?? body)}`)
        await new Promise((done) => setTimeout(done, 500))
      }
    },
    /** Types a command into the guest's console until its answer is read. */
    answers: async (command, expected) => {
      const screen = page.locator('.xterm-rows')
      const deadline = Date.now() + LONG.timeout
      for (;;) {
        await page.locator('[data-console]').click()
        await page.keyboard.type(command)
        await page.keyboard.press('Enter')
        if (await screen.getByText(expected).first().waitFor({ timeout: 5000 }).then(() => true, () => false)) return
        if (Date.now() > deadline) throw new Error(`the guest does not answer ${expected}; its console: ${await screen.innerText()}`)
      }
    },
  }
}
