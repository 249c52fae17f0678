// Every state of a page has an address. Pages other than the list are loaded when they are opened.
import { createRouter, createWebHistory } from 'vue-router'
import { session } from '@/api/session'

export const router = createRouter({
  history: createWebHistory(new URL(document.baseURI).pathname),
  routes: [
    { path: '/', name: 'overview', component: () => import('@/pages/Overview.vue') },
    { path: '/login', name: 'login', component: () => import('@/pages/Login.vue'), meta: { open: true } },
    { path: '/vms', name: 'vms', component: () => import('@/pages/Machines.vue') },
    { path: '/vms/create', name: 'vm-create', component: () => import('@/pages/CreateMachine.vue') },
    { path: '/vms/:namespace/:name/:tab?', name: 'vm', component: () => import('@/pages/Machine.vue'), props: true },
    { path: '/images', name: 'images', component: () => import('@/pages/Images.vue') },
    { path: '/volumes', name: 'volumes', component: () => import('@/pages/Volumes.vue') },
    { path: '/nodes', name: 'nodes', component: () => import('@/pages/Nodes.vue') },
    { path: '/:rest(.*)*', name: 'lost', component: () => import('@/pages/Lost.vue') },
  ],
})

router.beforeEach((to) => {
  if (!session.user && !to.meta.open) return { name: 'login', query: to.fullPath === '/' ? {} : { to: to.fullPath } }
  if (session.user && to.name === 'login') return String(to.query.to ?? '/')
})
