/** What the image commands are told: settings and flags. */
import {absolutePath, oneOf, textLike} from '../config/setting-types.ts';
import {settings, type SettingsTable} from '../config/settings.ts';

const {libvirtUri, pool, baseVolume, logLevel} = settings;

export const imageSettings = {libvirtUri, pool, baseVolume, logLevel} as const satisfies SettingsTable;

export const pushSettings = {
	...imageSettings,
	imageUri: {
		env: 'PODVM_IMAGE_URI',
		section: 'Images',
		type: textLike('a reference such as oci::REPOSITORY:TAG::/image/podvm.qcow2', /^\P{Cc}+$/v),
		example: 'oci::quay.io/openshift_sandboxed_containers/podvm:latest::/image/podvm.qcow2',
		description:
			'What `image push` pushes when it is given no operand: a container image and, behind `::`, the path of the disk image in it.',
	},
	poolDirectory: {
		env: 'LIBVIRT_DIR_NAME',
		flag: 'pool-path',
		section: 'Images',
		type: absolutePath(),
		example: '/var/lib/libvirt/images',
		description:
			'Directory on the KVM host of a pool that `image push -create-pool` creates; an existing pool knows its own. ' +
			'Not set: `/var/lib/libvirt/images`, and in it a directory named after the pool for any but `default`.',
	},
	authFile: {
		env: 'REGISTRY_AUTH_FILE',
		flag: 'auth-file',
		section: 'Images',
		type: absolutePath(),
		example: '/root/containers/auth.json',
		description:
			'Credentials for registries: `{"auths": {"REGISTRY": {"auth": "BASE64 OF USER:PASSWORD"}}}`. ' +
			'Not set: the usual places, among them `~/.docker/config.json`, `~/.config/containers/auth.json` and `/root/containers/auth.json`.',
	},
	updateConfigMap: {
		env: 'UPDATE_PEERPODS_CM',
		section: 'Images',
		type: oneOf('yes', 'no'),
		default: 'no',
		description:
			"`yes`: `image push` writes the new volume's name to `LIBVIRT_VOL_NAME` and `LIBVIRT_IMAGE_ID` of the config map `peer-pods-cm` instead of " +
			'making `LIBVIRT_VOL_NAME` stand for it. For a pod in the cluster whose service account may change that config map.',
	},
} as const satisfies SettingsTable;

export const pushFlags = [
	{
		name: 'create-pool',
		isSwitch: true,
		description: 'Create the pool where there is none (type dir), start it, and have it started with the host.',
	},
	{
		name: 'no-switch',
		isSwitch: true,
		description:
			'Only make the volume: nothing starts from it until it is named in LIBVIRT_VOL_NAME, in a pod\'s annotation, or to "image use".',
	},
	{
		name: 'registry-ca',
		value: 'FILE',
		description: 'Certificate authority (PEM) of the registry, besides those that Node.js trusts.',
	},
	{
		name: 'plain-http',
		value: 'HOST[:PORT],…',
		description:
			'Registries, token servers and blob stores that may be spoken to without TLS. A registry on this machine always may.',
	},
	{
		name: 'local-host',
		value: 'HOST[:PORT],…',
		description:
			'Token servers and blob stores that a registry may lead to though they are on this machine or at a link-local address. The registry itself may be anywhere.',
	},
	{
		name: 'platform',
		value: 'OS/ARCHITECTURE',
		description:
			'What a container image must be for, linux/s390x if not given. For an image that is labelled wrongly: its content is judged all the same.',
	},
	{
		name: 'namespace',
		value: 'NAMESPACE',
		description: "Where the config map of UPDATE_PEERPODS_CM is; the pod's own namespace if not given.",
	},
] as const;

export const listFlags = [{name: 'json', isSwitch: true, description: 'One JSON document, sizes in bytes.'}] as const;
export const removeFlags = [
	{
		name: 'force',
		isSwitch: true,
		description: 'Also the image that pods get that name no other. Never one that VMs stand on.',
	},
] as const;
export const pruneFlags = [
	{name: 'keep', value: 'NUMBER', description: 'How many of the newest versions stay in any case, 2 if not given.'},
] as const;
