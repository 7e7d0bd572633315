/** Settings and flags of the image commands. */
import {absolutePath, oneOf, textLike} from '../config/setting-types.ts';
import {settings, type InertSetting, type SettingsTable} from '../config/settings.ts';

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
			'Default operand of `image push`: a container image and, after `::`, the path of the disk image in it.',
	},
	poolDirectory: {
		env: 'LIBVIRT_DIR_NAME',
		flag: 'pool-path',
		section: 'Images',
		type: absolutePath(),
		example: '/var/lib/libvirt/images',
		description:
			'Directory on the KVM host for a pool that `image push -create-pool` creates. It has no effect on an existing pool. ' +
			'Not set: `/var/lib/libvirt/images` for the pool `default`, otherwise a directory in it with the name of the pool.',
	},
	authFile: {
		env: 'REGISTRY_AUTH_FILE',
		flag: 'auth-file',
		section: 'Images',
		type: absolutePath(),
		example: '/root/containers/auth.json',
		description:
			'Credentials for registries: `{"auths": {"REGISTRY": {"auth": "BASE64 OF USER:PASSWORD"}}}`. ' +
			'Not set: the usual files, such as `~/.docker/config.json`, `~/.config/containers/auth.json` and `/root/containers/auth.json`.',
	},
	updateConfigMap: {
		env: 'UPDATE_PEERPODS_CM',
		section: 'Images',
		type: oneOf('yes', 'no'),
		default: 'no',
		description:
			'`yes`: `image push` writes the name of the new volume to `LIBVIRT_VOL_NAME` and `LIBVIRT_IMAGE_ID` of the config map `peer-pods-cm` and ' +
			'leaves the alias `LIBVIRT_VOL_NAME` unchanged. It must run in a pod whose service account may change that config map.',
	},
} as const satisfies SettingsTable;

const isBuildKey = 'only the image builder of the operator reads it, and this program builds no images';
/**
 * Keys of `libvirt-podvm-image-cm` for the operator's image builder. Source: openshift/sandboxed-containers-operator,
 * config/peerpods/podvm.
 */
export const buildKeys: readonly InertSetting[] = [
	{env: 'PODVM_DISTRO', reason: `distribution of the image to build; ${isBuildKey}`},
	{
		env: 'DOWNLOAD_SOURCES',
		silentFor: ['no', 'false'],
		reason: `whether to download sources for the build; ${isBuildKey}`,
	},
	{env: 'CAA_SRC', reason: `repository of the sources to build from; ${isBuildKey}`},
	{env: 'CAA_REF', reason: `version of the sources to build from; ${isBuildKey}`},
	{
		env: 'CONFIDENTIAL_COMPUTE_ENABLED',
		silentFor: ['no', 'false'],
		reason: `whether to build an image for confidential VMs; DISABLECVM=false starts confidential VMs, and ${isBuildKey}`,
	},
	{env: 'ORG_ID', reason: `subscription of the build; remove it here, since ${isBuildKey}`},
	{env: 'ACTIVATION_KEY', reason: `subscription of the build and a secret; remove it here, since ${isBuildKey}`},
	{
		env: 'IMAGE_NAME',
		reason: `file name of the image to build; LIBVIRT_VOL_NAME names the volume, and ${isBuildKey}`,
	},
	{
		env: 'SE_BOOT',
		silentFor: ['no', 'false'],
		reason: `whether to build an image for IBM Secure Execution; push one that is, and set DISABLECVM=false: ${isBuildKey}`,
	},
	{env: 'BASE_OS_VERSION', reason: `version of the distribution of the image to build; ${isBuildKey}`},
];

export const pushFlags = [
	{
		name: 'create-pool',
		isSwitch: true,
		description: 'Creates the pool (type dir) if it does not exist, starts it, and turns on its autostart.',
	},
	{
		name: 'no-switch',
		isSwitch: true,
		description:
			'Only creates the volume. Pods use it after it is set in LIBVIRT_VOL_NAME, in the annotation of a pod, or with "image use".',
	},
	{
		name: 'new-version',
		isSwitch: true,
		description: 'Makes a new version even if the pool has one with the same content.',
	},
	{
		name: 'registry-ca',
		value: 'FILE',
		description: 'Additional certificate authority (PEM) to trust for the registry.',
	},
	{
		name: 'plain-http',
		value: 'HOST[:PORT],…',
		description:
			'Registries, token servers and blob stores that may be used without TLS. A registry on this machine is always allowed.',
	},
	{
		name: 'local-host',
		value: 'HOST[:PORT],…',
		description:
			'Allows a registry to refer to these token servers and blob stores on this machine or at a link-local address. The registry itself may have any address.',
	},
	{
		name: 'platform',
		value: 'OS/ARCHITECTURE',
		description:
			'Required platform of the container image; the default is linux/s390x. Use it for images with a wrong label. The content is always checked.',
	},
	{
		name: 'namespace',
		value: 'NAMESPACE',
		description: 'Namespace of the config map for UPDATE_PEERPODS_CM; the default is the namespace of this pod.',
	},
] as const;

export const packFlags = [
	{
		name: 'o',
		value: 'FILE',
		description: 'The archive to write; the default is the name of the image with .oci.tar, in this directory.',
	},
] as const;
export const listFlags = [
	{name: 'json', isSwitch: true, description: 'Prints one JSON document with sizes in bytes.'},
] as const;
export const removeFlags = [
	{
		name: 'force',
		isSwitch: true,
		description: 'Also removes the default image, but never one that VMs use.',
	},
] as const;
export const pruneFlags = [
	{name: 'keep', value: 'NUMBER', description: 'Number of newest versions to keep; the default is 2.'},
] as const;
