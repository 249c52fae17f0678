import { en } from './en'
import type { Messages } from './index'
export const zh: Messages = { ...en }
